"""Keeps inherited gRPC objects alive in a forked child.

When a call or channel of gRPC is freed, it cancels or closes itself, and takes locks to do so. If another thread of the
parent held such a lock at the fork, it stays held for ever in the child, where that thread does not exist. So the child
never frees inherited gRPC objects, not even when the interpreter ends.
"""

from __future__ import annotations

import ctypes
import gc
import os


def _keep_inherited() -> None:
    """Take a reference to every gRPC object and never release it. What these objects refer to stays alive as well."""
    for each in gc.get_objects():
        module: object = type(each).__module__  # some types of C code have a descriptor there
        if isinstance(module, str) and module.partition(".")[0] == "grpc":
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


os.register_at_fork(after_in_child=_keep_inherited)
