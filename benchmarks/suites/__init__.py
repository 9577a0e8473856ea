"""The suites: each is a module with a ``run`` function."""
