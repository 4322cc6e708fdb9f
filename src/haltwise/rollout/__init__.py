"""Run processes: recorded for training, with early exit in use."""
