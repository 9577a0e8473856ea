"""Secrets of a pool: sealed in its catalog under a master key, granted to functions by name.

``master_key`` knows where the master key is, ``sealing`` one secret's record, ``document`` all records as the
catalog keeps them, ``vault`` both together, changed and re-wrapped in one step; ``store`` is what operators
and functions do with it.
"""
