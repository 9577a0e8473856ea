"""The benchmark suite. It compares every figure with the physical limit measured in the same run.

``python -m benchmarks --quick`` runs all suites on small sizes; see ``python -m benchmarks --help``.
"""
