"""Recorded runs of training loops."""
