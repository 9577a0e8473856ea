"""Composes processes from their parts: a pool, a file server."""
