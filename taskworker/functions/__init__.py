"""Functions: what is declared and deployed, how it is packed, and how a worker runs it."""
