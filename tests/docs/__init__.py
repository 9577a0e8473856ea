"""The documentation does what it says: its blocks run, its reference is complete."""
