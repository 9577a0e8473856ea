"""The formats of what is stored: pure functions over bytes."""
