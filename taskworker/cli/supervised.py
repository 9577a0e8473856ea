"""What the commands pool and worker share: options, and ending together with their supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Annotated

import typer

GRACE_S = 5.0
"""Seconds that running calls get when the process ends."""

LimitsMax = Annotated[
    str,
    typer.Option(
        "--limits-max",
        help="Highest limits that functions may ask for: memory=8GiB,wall=7200,...; the others keep their defaults.",
        metavar="LIMITS",
    ),
]
NoAuth = Annotated[
    bool,
    typer.Option(
        "--no-auth",
        help="Ask nobody for a token: whoever can connect may do everything. For tests and trials.",
        show_default=False,
    ),
]
Encryption = Annotated[
    bool | None,
    typer.Option(
        "--encryption/--no-encryption",
        help="Encrypt what workers get of new files: content, names, notes, owners. The keys are sealed with the "
        "master key, without which nothing can be read. Without encryption, workers of other owners are refused "
        "(default: as before; a new pool encrypts).",
        show_default=False,
    ),
]
NO_AUTH_WARNING = "--no-auth: nobody needs a token here, and whoever can connect may do everything"
Supervised = Annotated[
    bool, typer.Option("--supervised", hidden=True, help="End when standard input does.", show_default=False)
]


def watch_parent(*, wanted: bool) -> None:
    """End as on Ctrl-C once standard input ends: the supervisor holds its other end."""
    if not wanted:
        return

    def watch() -> None:
        # Not through sys.stdin: a thread that holds its lock would keep the interpreter from shutting down.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
