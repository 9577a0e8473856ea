"""Workers: processes that offer a volume and functions to a pool, or serve them standalone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.worker.task_worker import TaskWorker

__all__ = ["TaskWorker"]

__getattr__, __dir__ = loading(__name__, {"TaskWorker": "taskworker.worker.task_worker"})
