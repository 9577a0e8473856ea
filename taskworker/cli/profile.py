"""The options --k and --n."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from storage import ErasureProfile

K = Annotated[
    int | None,
    typer.Option("--k", help="Shards needed to read (default: 4, or the store's).", metavar="NUMBER", min=1),
]
N = Annotated[
    int | None, typer.Option("--n", help="Shards to store (default: 6, or the store's).", metavar="NUMBER", min=1)
]


def profile_of(k: int | None, n: int | None) -> ErasureProfile | None:
    """The erasure profile that was asked for, if any."""
    if k is None and n is None:
        return None
    if k is None or n is None:
        raise Failure("give both --k and --n", ExitCode.USAGE)
    from storage import ErasureProfile

    return ErasureProfile(k, n)
