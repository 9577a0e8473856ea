"""Secrets of a pool: sealed in its catalog under a master key, granted to functions by name.

``master_key`` keeps the master key, ``sealing`` seals one secret's record, ``document`` holds all records in the form
that the catalog stores, ``vault`` combines both and changes or re-wraps the records atomically, and ``store`` has the
operations of operators and functions.
"""
