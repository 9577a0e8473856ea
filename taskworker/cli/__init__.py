"""The command line ``taskworker``.

``app`` declares the commands, ``session`` gives each of them its options, its store and one way to
fail, and the modules named after commands say what they do. Commands know one port, ``backend``, with
two implementations: ``embedded`` (a store in this process) and ``remote`` (a server over gRPC).

Modules are imported late throughout: what a command does not use must not cost it start-up time.
"""

from __future__ import annotations

import os
import sys

from taskworker.cli.signals import Stopped, unwind_on_signals


def main() -> None:
    """Entry point of the ``taskworker`` script."""
    unwind_on_signals()
    try:
        from taskworker.cli.app import run

        sys.exit(run())
    except Stopped as stopped:
        # All is undone by now. Not sys.exit: it waits for threads, and what was interrupted may have
        # left one waiting for ever.
        os._exit(stopped.exit_code)
