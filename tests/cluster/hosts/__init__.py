"""Machines of their own for a pool and its workers: network namespaces on a common bridge."""
