"""What all commands share: their options, their store, and their error handling."""

from __future__ import annotations

import contextlib
import functools
import gc
import getpass
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Concatenate, ParamSpec

import typer

from taskworker.cli.exits import ExitCode, Failure, exit_code_of
from taskworker.cli.signals import finish_regardless, stopped_in
from taskworker.cli.streams import check_output, drop_output
from taskworker.cli.terminal import Terminal
from taskworker.cli.tracing import traced_command

if TYPE_CHECKING:
    from storage import ErasureProfile
    from taskworker.cli.backend import Backend
    from taskworker.cli.embedded import EmbeddedBackend

DEFAULT_ADDRESS = "127.0.0.1:50051"
_PANEL = "Options of every command"

StoreOption = Annotated[
    Path | None,
    typer.Option(
        help="Work on the store in this directory, with no server (env: TASKWORKER_STORE).",
        metavar="DIR",
        file_okay=False,
        rich_help_panel=_PANEL,
    ),
]
PoolOption = Annotated[
    str | None,
    typer.Option(
        help=f"Address of a server (env: TASKWORKER_POOL; else that of `context use`, or {DEFAULT_ADDRESS}).",
        metavar="ADDR",
        rich_help_panel=_PANEL,
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option(
        help="Owner of the files (env: TASKWORKER_USER; else the login name).",
        metavar="USER",
        rich_help_panel=_PANEL,
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        help="With --store: encrypt the store with the key in this file, and read what is encrypted. With a server: "
        "seal files with this key before they are sent, so that the server cannot read them, and open them (env: "
        "TASKWORKER_KEY_FILE). The file has 32 random bytes in base64, and is nobody else's to read.",
        metavar="FILE",
        dir_okay=False,
        rich_help_panel=_PANEL,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print results as JSON.", show_default=False, rich_help_panel=_PANEL)
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show where in the code an error came from.", show_default=False, rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that every command has, given before or after the command's name."""

    store: Path | None = None
    pool: str | None = None
    user: str | None = None
    json: bool = False
    debug: bool = False
    key_file: Path | None = None

    def overridden_by(self, later: Settings) -> Settings:
        """These settings, with those set in ``later`` replaced."""
        place = later if later.store or later.pool else self
        return Settings(
            store=place.store,
            pool=place.pool,
            user=later.user or self.user,
            json=later.json or self.json,
            debug=later.debug or self.debug,
            key_file=later.key_file or self.key_file,
        )


class Session:
    """One run of a command: its terminal, and its access to the store."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.terminal = Terminal(as_json=settings.json)

    @property
    def user(self) -> str:
        """The user whose files this command works on."""
        return self.settings.user or os.environ.get("TASKWORKER_USER") or self._name_at_server() or _login_name()

    def _name_at_server(self) -> str:
        """The name by which the server knows this login, if that was told to it; otherwise empty."""
        store, pool = self._where()
        if store is not None:
            return ""
        from taskworker.auth.contexts import Contexts

        found = Contexts().find(pool or _default_address())
        return found.user if found is not None and not found.server else ""

    @contextlib.contextmanager
    def backend(self, *, create: bool = False, profile: ErasureProfile | None = None) -> Iterator[Backend]:
        """Open the files named by ``--store`` or ``--pool``.

        Args:
            create: create an embedded store that does not exist yet.
            profile: the default profile of a store created now.
        """
        store, pool = self._where()
        if store is not None:
            with self._embedded(store, create=create, profile=profile) as embedded:
                yield embedded
                finish_regardless()  # the work is done, even if a signal comes while the store is being closed
            return
        from taskworker.cli.remote import remote_backend

        with contextlib.closing(remote_backend(pool or _default_address(), self.user, key=self.key_file())) as remote:
            yield remote
            finish_regardless()

    @contextlib.contextmanager
    def embedded(self) -> Iterator[EmbeddedBackend]:
        """Open the embedded store itself, for operations on a store in this process only."""
        with self._embedded(self.store_path(), create=False, profile=None) as embedded:
            yield embedded

    def is_embedded(self) -> bool:
        """Whether ``--store`` names an embedded store."""
        return self._where()[0] is not None

    def place(self) -> str:
        """Where the files are, for what this machine keeps about them: the directory of the store, or an address."""
        store, pool = self._where()
        return str(store.resolve()) if store is not None else pool or _default_address()

    def pool_address(self) -> str:
        """The address of the pool, for commands that work only on pools."""
        store, pool = self._where()
        if store is not None:
            raise Failure("this works with a pool only: say which with --pool ADDR", ExitCode.USAGE)
        return pool or _default_address()

    def keep_trust(self) -> None:
        """Learn of new authorities of the server that this command has used, if that is due."""
        store, pool = self._where()
        if store is not None:
            return
        from taskworker.auth.contexts import Contexts

        contexts = Contexts()
        context = contexts.find(pool or contexts.current or DEFAULT_ADDRESS)
        if context is None or not context.name or context.server:
            return  # at once, as loading what follows takes longer
        from storage.errors import StorageError
        from taskworker.client.trust_refresh import is_due, refresh

        if is_due(context):
            with contextlib.suppress(StorageError, OSError):  # the command itself has succeeded
                refresh(contexts, context)

    def key_file(self) -> Path | None:
        """The file with the key of an embedded store, or the user's own; None if none is named."""
        named = os.environ.get("TASKWORKER_KEY_FILE")
        return self.settings.key_file or (Path(named) if named else None)

    def store_path(self) -> Path:
        """The directory of the embedded store, for commands that work only on such stores."""
        store, _ = self._where()
        if store is None:
            raise Failure("this works on an embedded store only: say which with --store DIR", ExitCode.USAGE)
        return store

    def _where(self) -> tuple[Path | None, str | None]:
        store, pool = self.settings.store, self.settings.pool
        if store is None and pool is None:
            named = os.environ.get("TASKWORKER_STORE")
            store, pool = Path(named) if named else None, os.environ.get("TASKWORKER_POOL") or None
        if store is not None and pool is not None:
            raise Failure("--store and --pool (or their variables) exclude each other: give one", ExitCode.USAGE)
        return store, pool

    @contextlib.contextmanager
    def _embedded(self, path: Path, *, create: bool, profile: ErasureProfile | None) -> Iterator[EmbeddedBackend]:
        from taskworker.cli.embedded import EmbeddedBackend

        if not create and not path.is_dir():
            raise Failure(f"there is no store at {path}; `push` or `serve` make one", ExitCode.NOT_FOUND)
        with contextlib.closing(
            EmbeddedBackend(path, self.user, self.key_file(), create=create, profile=profile)
        ) as embedded:
            yield embedded


def _default_address() -> str:
    """Where commands work without ``--pool``: on the server chosen last, or on the one at the usual address."""
    from taskworker.auth.contexts import Contexts

    return Contexts().current or DEFAULT_ADDRESS


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise Failure("this login has no name: give --user", ExitCode.USAGE) from error


P = ParamSpec("P")
NUMBER_MAX = (1 << 31) - 1
"""Largest number in a command, in bytes, seconds, GiB or lines: more than exists, yet within every counter's range."""
_COMMON = {
    "store": (StoreOption, None),
    "pool": (PoolOption, None),
    "user": (UserOption, None),
    "key_file": (KeyFileOption, None),
    "json": (JsonOption, False),
    "debug": (DebugOption, False),
}


def with_session(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Turn a command that takes a session into one that takes the common options instead."""

    @functools.wraps(command)
    def run(context: typer.Context, **arguments: object) -> None:
        here = Settings(**{name: arguments.pop(name) for name in _COMMON})  # type: ignore[arg-type]
        settings = (context.obj or Settings()).overridden_by(here)

        def act(session: Session) -> None:
            _require_numbers(arguments)
            command(session, **arguments)  # type: ignore[arg-type, call-arg]

        run_with(settings, act, name=context.info_name or "", instance=str(arguments.get("worker_id") or ""))

    original = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for parameter in list(original.parameters.values())[1:]),
        *(
            inspect.Parameter(name, keyword, annotation=annotation, default=default)
            for name, (annotation, default) in _COMMON.items()
        ),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = _help_text(command.__doc__ or "")
    del run.__wrapped__
    return run


def _require_numbers(arguments: Mapping[str, object]) -> None:
    """Refuse numbers that make no sense for any option, instead of passing them on.

    Raises:
        Failure: a number is out of range.
    """
    for name, value in arguments.items():
        if isinstance(value, int | float) and not abs(value) <= NUMBER_MAX:
            option = name.replace("_", "-")
            raise Failure(f"--{option}: the number is too large; at most {NUMBER_MAX:,} is allowed", ExitCode.USAGE)


def _help_text(docstring: str) -> str:
    """A docstring as help: the terminal wraps its paragraphs, and only examples keep their line breaks."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith("Examples:") else paragraph.replace("\n", " ") for paragraph in paragraphs
    )


def run_with(settings: Settings, command: Callable[[Session], None], *, name: str = "", instance: str = "") -> None:
    """Run a command; an error ends it with its exit code and one readable line, plus the frames of a function's error.

    Args:
        settings: the options that every command has.
        command: does it.
        name: of the command, for traces.
        instance: name of this process among those that run this command; empty: none.

    Raises:
        typer.Exit: the command failed.
    """
    session = Session(settings)
    gc.freeze()
    gc.enable()
    try:
        if session.settings.json:
            check_output()
        with traced_command(name, instance):
            command(session)
        session.keep_trust()
    except BrokenPipeError:
        drop_output()
        raise typer.Exit(ExitCode.PIPE_CLOSED) from None
    except typer.Exit:
        raise
    except Exception as error:
        if (stopped := stopped_in(error)) is not None:
            raise stopped from None
        if session.settings.debug:
            session.terminal.trace(error)
        session.terminal.error(*_messages(error))
        raise typer.Exit(exit_code_of(error)) from None


def _messages(error: Exception) -> list[str]:
    from taskworker.errors import FunctionBroken, FunctionFailed, PackagesNotFound

    if isinstance(error, FunctionBroken | FunctionFailed | PackagesNotFound):
        return [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return [_message(error)]


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror}"
    return str(error) or type(error).__name__
