"""Functions: authors pack them, the pool routes their calls, workers host them."""
