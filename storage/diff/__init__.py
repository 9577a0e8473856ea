"""Differences between versions."""
