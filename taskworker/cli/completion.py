"""Shell completion of the names of the user's files."""

from __future__ import annotations

import itertools

import typer

_NAMES_MAX = 100


def complete_file(context: typer.Context, incomplete: str) -> list[str]:
    """Names of files that start with ``incomplete``; none if the store cannot be reached."""
    from taskworker.cli.session import Session, Settings

    try:
        settings = Settings()
        for level in (context.parent, context):
            if level is not None:
                chosen = {name: level.params.get(name) for name in ("store", "pool", "user", "key_file")}
                settings = settings.overridden_by(Settings(**chosen))  # type: ignore[arg-type]
        with Session(settings).backend() as backend:
            heads = backend.list_files(incomplete)
            return [head.filename for head in itertools.islice(heads, _NAMES_MAX)]
    except Exception:  # errors must not disturb the shell's prompt
        return []
