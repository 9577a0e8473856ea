"""The pool's side of calls: which call runs next, on which worker, and what is kept of it."""
