"""Shared foundations: errors, settings, random streams, tensors, files, workers."""
