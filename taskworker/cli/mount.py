"""The command that mounts files, or snapshots of folders, with FUSE."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.supervised import Supervised, watch_parent
from taskworker.cli.text import one_line, visible
from taskworker.cli.times import span_s

if TYPE_CHECKING:
    from taskworker.gateways.fuse.blocks import BlockCache
    from taskworker.gateways.fuse.nodes import Tree
    from taskworker.gateways.fuse.stored import Stored

_MIB = 1 << 20


def mount(
    session: Session,
    directory: Annotated[
        Path, typer.Argument(help="An empty directory to mount on.", metavar="DIR", show_default=False)
    ],
    folder: Annotated[
        str | None,
        typer.Option(help="Mount the snapshots of this folder, in place of files.", metavar="NAME", show_default=False),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(
            help="Only this snapshot of --folder: the first digits of its id, or latest.",
            metavar="SNAPSHOT",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Mount files as they were then: 2026-11-28, '2026-11-28 23:36', or 12h or 7d ago.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    allow_other: Annotated[
        bool,
        typer.Option(
            "--allow-other",
            help="Let other users of this machine read, as far as owners and permission bits allow it. Users other "
            "than root need user_allow_other in /etc/fuse.conf.",
            show_default=False,
        ),
    ] = False,
    cache: Annotated[
        int, typer.Option(help="MiB of content to keep in memory.", metavar="MIB", min=2, max=1 << 20)
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds after which a read that gets no answer fails.", metavar="SECONDS", min=1, max=3600),
    ] = 30,
    supervised: Supervised = False,
) -> None:
    """Mount your files, or the snapshots of a folder, read-only on a directory, until Ctrl-C or fusermount3 -u.

    Without --folder, these are your files, each / in a name being a directory, as they are now or were at a time. With
    it, each snapshot is a directory, and latest leads to the newest one. Only you can read what is mounted.

    Examples:
        taskworker mount ~/files
        taskworker mount ~/photos --folder photos
        taskworker mount /mnt --folder photos --snapshot latest
        taskworker mount ~/yesterday --at 1d
    """
    if snapshot is not None and folder is None:
        raise Failure("--snapshot needs --folder: say of which folder", ExitCode.USAGE)
    if at is not None and folder is not None:
        raise Failure("--at is for files: choose among the snapshots of a folder by --snapshot", ExitCode.USAGE)
    from storage.clocks import wall_ms

    at_ms = None if at is None else _moment_ms(at, wall_ms)
    try:
        import mfusepy  # noqa: F401 - whether it is there
    except ModuleNotFoundError:
        raise Failure("mount needs mfusepy: pip install 'taskworker[mount]'", ExitCode.FAILED) from None
    except OSError:
        raise Failure("mount needs libfuse: install the package fuse3", ExitCode.FAILED) from None
    from taskworker.gateways.fuse.blocks import BlockCache
    from taskworker.gateways.fuse.mounting import CannotMount, check_mount_point
    from taskworker.gateways.fuse.mounting import mount as mount_tree

    def ready() -> None:
        session.terminal.result(
            {"directory": str(directory), "pid": os.getpid()},
            f"mounted at {one_line(str(directory))}; Ctrl-C or `fusermount3 -u` unmounts it",
        )

    try:
        check_mount_point(directory)
        with _stored(session, timeout) as files:
            blocks = BlockCache(cache * _MIB, timeout)
            try:
                tree = _tree(session, files, blocks, folder, snapshot, at_ms)
                watch_parent(wanted=supervised)
                mount_tree(tree, directory.absolute(), allow_other=allow_other, ready=ready)
            finally:
                blocks.close()
    except CannotMount as error:
        raise Failure(str(error)) from None


def _tree(
    session: Session, files: Stored, blocks: BlockCache, folder: str | None, snapshot: str | None, at_ms: int | None
) -> Tree:
    from taskworker.gateways.fuse.file_tree import FileTree
    from taskworker.gateways.fuse.snapshot_tree import SnapshotTree

    if folder is not None:
        return SnapshotTree(files, folder.rstrip("/"), snapshot, blocks)
    files.page("", None, "/", 1)  # a server that is not there, or refuses, is told now
    return FileTree(files, at_ms, blocks, lambda text: session.terminal.error(visible(text)))


@contextlib.contextmanager
def _stored(session: Session, timeout_s: float) -> Iterator[Stored]:
    from taskworker.cli.embedded import open_store
    from taskworker.client import Client
    from taskworker.gateways.fuse.stored import stored

    if not session.is_embedded():
        with Client(session.pool_address(), timeout_s=timeout_s, key=session.key_file()) as client:
            yield stored(client, session.user)
        return
    with contextlib.closing(open_store(session.store_path(), session.key_file())) as store:
        yield stored(store, session.user)


def _moment_ms(text: str, now_ms: Callable[[], int]) -> int:
    """A time that an option names, as ms since 1970: a date, with a time or not, or how long ago.

    Raises:
        Failure: it is neither.
    """
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        try:
            return now_ms() - int(span_s(text, "--at") * 1000)
        except Failure:
            raise Failure(
                f"--at {one_line(text)!r}: write a time such as 2026-11-28 or '2026-11-28 23:36', or a span such as 7d",
                ExitCode.USAGE,
            ) from None
