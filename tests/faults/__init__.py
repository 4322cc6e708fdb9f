"""Kill, starve, damage and fuzz Haltwise, and count what is lost: nothing may be.

`make faults` runs it in full; `tests/test_faults.py` runs a little of each part. One warmed-up
process is forked for every case, so a case costs a fraction of a second. A case counts as

- lost, if a run cannot go on, goes on from before its last whole checkpoint, or shows a traceback;
- differing, if its weights, card, Adam moments or log differ from those of an undisturbed run.
"""
