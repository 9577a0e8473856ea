"""The command line ``taskworker``.

``app`` declares the commands, ``plain`` recognizes simple command lines without a full parser, ``session`` gives
each command its options, its store and its error handling, and the modules named after commands implement them.
Commands use one port, ``backend``, with two implementations: ``embedded`` (a store in this process) and ``remote``
(a server over gRPC).

Modules are imported late throughout, so that a command does not spend start-up time on modules it does not use.
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
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # this program reports failures itself, once
        gc.disable()  # until the command begins: objects made by imports stay, so scanning them is a waste
        from taskworker.cli.app import run

        _leave(run())
    except BaseException as error:
        stopped = stopped_in(error)
        if stopped is None:
            raise
        # Everything has been cleaned up by now. sys.exit would wait for threads, and the interrupted code
        # may have left one that waits for ever.
        os._exit(stopped.exit_code)


def _leave(exit_code: int) -> NoReturn:
    """End the process after writing all output.

    If there is no thread to wait for, exit at once: the interpreter takes 20 ms to tear down its modules, a tenth of
    the time of a short command. Commands have closed everything they opened by now.
    """
    if all(thread is threading.main_thread() or thread.daemon for thread in threading.enumerate()):
        with suppress(OSError, ValueError):  # the interpreter retries at exit, and reports failure
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(exit_code)
    sys.exit(exit_code)
