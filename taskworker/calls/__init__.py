"""What callers and workers share about calls: the call and its outcome, a function's specification, its bundle."""
