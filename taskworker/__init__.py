"""TaskWorker: an erasure-coded, versioned file store and the network around it.

Names are loaded when first used, so that ``import taskworker`` costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from taskworker import engine_names, former_names

if TYPE_CHECKING:
    from storage import FileStorage
    from taskworker.client import AsyncClient, Client
    from taskworker.sandbox import Limits
    from taskworker.worker.task_worker import TaskWorker

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "FileStorage", "Limits", "TaskWorker"]

_HOMES = {
    "AsyncClient": "taskworker.client",
    "Client": "taskworker.client",
    "FileStorage": "taskworker.storage",
    "Limits": "taskworker.sandbox",
    "TaskWorker": "taskworker.worker.task_worker",
}


engine_names.install()
former_names.install()


# Not by way of storage.lazily: this package is loaded in sandboxes, too, which have no storage.
def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
