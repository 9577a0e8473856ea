"""Stripes: objects to shards and back, from whatever k shards are left."""
