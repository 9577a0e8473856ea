"""Options of a pool about clients that read from its workers, and write to them, themselves."""

from __future__ import annotations

from typing import Annotated

import typer

Direct = Annotated[
    bool, typer.Option("--direct/--no-direct", help="Let clients read large files from the workers themselves.")
]
DirectPushes = Annotated[
    bool,
    typer.Option(
        "--direct-pushes/--no-direct-pushes",
        help="Let clients encrypt and code large files and write them to the workers themselves, if the pool encrypts "
        "and --direct is on. That spares the pool most of the work.",
    ),
]
