"""The programs inside the sandbox: the base, a function's init, its zygote and its calls.

Only this package and ``taskworker.sandbox.frames`` are available there, so nothing here may import other parts of
``taskworker``.
"""
