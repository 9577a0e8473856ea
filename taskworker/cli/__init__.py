"""The command line ``taskworker``.

``app`` declares the commands, ``plain`` knows those that need no parser, ``session`` gives each of them its
options, its store and one way to fail, and the modules named after commands say what they do. Commands know
one port, ``backend``, with two implementations: ``embedded`` (a store in this process) and ``remote`` (a
server over gRPC).

Modules are imported late throughout: what a command does not use must not cost it start-up time.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from taskworker.cli.signals import stopped_in, unwind_on_signals
from taskworker.cli.streams import open_standard_streams


def main() -> None:
    """Entry point of the ``taskworker`` script."""
    open_standard_streams()
    try:
        unwind_on_signals()
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is said in this program's own words, once
        gc.disable()  # until the command begins: what imports make is there to stay; looking through it takes a while
        from taskworker.cli.app import run

        _leave(run())
    except BaseException as error:
        stopped = stopped_in(error)
        if stopped is None:
            raise
        # All is undone by now. Not sys.exit: it waits for threads, and what was interrupted may have
        # left one waiting for ever.
        os._exit(stopped.exit_code)


def _leave(exit_code: int) -> NoReturn:
    """End the process with all that was printed.

    At once if no thread is to be waited for: taking down its modules takes the interpreter 20 ms, a tenth of what
    a short command takes. Commands have closed by now whatever they opened.
    """
    if all(thread is threading.main_thread() or thread.daemon for thread in threading.enumerate()):
        with suppress(OSError, ValueError):  # what cannot be written, the interpreter tries once more, and tells
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(exit_code)
    sys.exit(exit_code)
