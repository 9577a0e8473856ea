"""Maintenance of a store: scrub, repair, heal, collect and rebuild, each in a module of its own."""
