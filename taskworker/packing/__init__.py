"""The author's side: makes bundles of functions, of a program that runs here or of modules on disk."""
