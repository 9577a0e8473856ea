"""Processes put together from their parts: a pool, a file server."""
