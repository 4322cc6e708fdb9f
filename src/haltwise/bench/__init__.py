"""StopBench: every rule on curves on every domain under one protocol.

`haltwise.bench.domains` are the recorded runs, `haltwise.curves.rules` the rules,
`haltwise.bench.protocol` how both are judged, `haltwise.bench.run` does it all and can be resumed.
"""
