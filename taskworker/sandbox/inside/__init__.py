"""What runs inside the sandbox: the base, a function's init, its zygote and its calls.

This package and ``taskworker.sandbox.frames`` are all of TaskWorker that is to be seen there; the rest of
``taskworker`` is not, so nothing here may import it.
"""
