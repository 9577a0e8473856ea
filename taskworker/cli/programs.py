"""Runs the worker that a user's own program declares."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.signals import Stopped, finish_regardless

if TYPE_CHECKING:
    from taskworker.worker.task_worker import TaskWorker


def run_program(session: Session, place: str, listen: str) -> None:
    """Serve the worker at ``module:worker`` until Ctrl-C.

    Args:
        session: the command's session.
        place: a module found in the current directory, and the name of a ``TaskWorker`` in it.
        listen: ``host:port``; only its port is used, as the worker has a host of its own.
    """
    import asyncio

    worker = _worker_at(place)
    port = listen.rpartition(":")[2]
    if not port.isdecimal():
        raise Failure(f"a program's worker listens on a port: --listen {listen!r} has none", ExitCode.USAGE)
    try:
        asyncio.run(_serve(session, worker, int(port)))
    except Stopped:
        finish_regardless()


async def _serve(session: Session, worker: TaskWorker, port: int) -> None:
    async with worker:
        await worker.start_server(port)
        where = f"joined the pool at {worker.node_pool_address}" if worker.node_pool_address else "has no pool"
        session.terminal.result(
            {"worker": worker.worker_id, "address": worker.address, "pid": os.getpid()},
            f"worker {worker.worker_id} at {worker.address} {where}; Ctrl-C stops it",
        )
        await worker.wait_for_termination()


def _worker_at(place: str) -> TaskWorker:
    from taskworker.worker.task_worker import TaskWorker

    module_name, separator, name = place.partition(":")
    if not separator:
        raise Failure(f"{place!r} is not MODULE:WORKER", ExitCode.USAGE)
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise
        raise Failure(f"there is no module {module_name!r} here", ExitCode.NOT_FOUND) from error
    worker = getattr(module, name, None)
    if not isinstance(worker, TaskWorker):
        raise Failure(f"{place} is not a TaskWorker, but a {type(worker).__name__}", ExitCode.USAGE)
    return worker
