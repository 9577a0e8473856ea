"""Stripes: encoding objects to shards, and restoring them from any k shards."""
