"""Measures a user's pool or store as its programs meet it: puts, gets, and calls of a function."""
