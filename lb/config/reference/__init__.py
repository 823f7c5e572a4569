"""The reference of all keys, written from the readers: `docs/CONFIGURATION.md` and the JSON Schema.

`deploy/examples/every-key.yaml` has every key. The readers themselves read it, with values that note what is
asked of them (`trace`): kinds, bounds with their reasons, defaults. One line of `meanings` for each key says
what it is for. `python -m lb.config.reference` writes both files; a test fails when they are stale.
"""
