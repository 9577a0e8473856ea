"""Looks for what would keep a pool, a worker or a client from working on this machine, and says what to do.

Nothing is changed: files that are written to measure a disk are removed at once.
"""
