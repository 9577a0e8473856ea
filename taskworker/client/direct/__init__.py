"""Reading large files from a pool's workers themselves: the pool tells where shards are, and issues tickets.

What cannot be read this way is read through the pool, and nobody sees the difference.
"""
