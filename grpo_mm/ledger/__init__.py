"""The ledger: what a run takes of memory and of arithmetic, owner by owner, before anything is loaded.

Nothing of a pipeline, a config or a report comes in: pipelines write ledgers, `show` and the loader read them.
"""
