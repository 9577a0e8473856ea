"""The suites, each a module with one ``run`` function."""
