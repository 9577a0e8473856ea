"""Campaigns: what a node pool promises, shown with real processes under real faults, with figures.

Each scenario is a module; :mod:`tests.cluster.__main__` runs them by name.
"""
