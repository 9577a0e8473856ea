"""gRPC's objects in a forked child: kept for as long as the child lives.

A call or a channel of gRPC that is freed cancels or closes itself, and takes locks to do so. In a child such a lock
stays held for ever if another thread of the parent held it at the fork, as that thread does not exist there.
So nothing of gRPC that was inherited is ever freed in the child, not even when the interpreter ends.
"""

from __future__ import annotations

import ctypes
import gc
import os


def _keep_inherited() -> None:
    """Take a reference that is never given back to every object of gRPC. What each one holds stays as well."""
    for each in gc.get_objects():
        module: object = type(each).__module__  # some types of C code have a descriptor there
        if isinstance(module, str) and module.partition(".")[0] == "grpc":
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


os.register_at_fork(after_in_child=_keep_inherited)
