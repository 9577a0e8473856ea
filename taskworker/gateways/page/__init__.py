"""The page: what a pool is and has, for people with a browser. It acts by the client, with each person's own rights."""
