"""Functions: packed by their author, routed by the pool, hosted by workers."""
