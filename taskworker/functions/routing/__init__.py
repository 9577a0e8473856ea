"""The pool's side of calls: decides which call runs next, on which worker, and keeps logs and statistics."""
