"""The pool's background work: repair, rebalance, healing, scrub, collect and audit."""
