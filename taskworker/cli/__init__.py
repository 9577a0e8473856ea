"""The command line ``taskworker``.

``app`` declares the commands, ``session`` gives each of them its options, its store and one way to
fail, and the modules named after commands say what they do. Commands know one port, ``backend``, with
two implementations: ``embedded`` (a store in this process) and ``remote`` (a server over gRPC).

Modules are imported late throughout: what a command does not use must not cost it start-up time.
"""

from __future__ import annotations

import sys

from taskworker.cli.signals import Stopped, finish_regardless, unwind_on_signals


def main() -> None:
    """Entry point of the ``taskworker`` script."""
    unwind_on_signals()
    try:
        from taskworker.cli.app import run

        sys.exit(run())
    except Stopped as stopped:
        finish_regardless()
        sys.exit(stopped.exit_code)
