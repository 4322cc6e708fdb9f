"""Interfaces: functions, optimizers, monitors and callbacks around one halting session."""
