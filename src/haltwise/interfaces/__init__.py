"""Functions, optimizers, monitors and callbacks around one halting session."""
