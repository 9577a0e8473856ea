"""Mounts a tree, until it is unmounted or a signal comes."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

from taskworker.gateways.fuse.file_tree import FRESH_S
from taskworker.gateways.fuse.nodes import Tree

_DEVICE = Path("/dev/fuse")
_KEPT_S = 600.0
"""Seconds for which the kernel keeps names and attributes of what never changes."""


class CannotMount(Exception):
    """Something on this machine is in the way; the text says what, and what to do."""


def check_mount_point(directory: Path) -> None:
    """Refuse what cannot be mounted on.

    Raises:
        CannotMount: it cannot.
    """
    shown = str(directory)
    try:
        status = directory.stat()
        names = os.listdir(directory) if stat.S_ISDIR(status.st_mode) else []
    except FileNotFoundError:
        raise CannotMount(f"{shown} does not exist: make it with mkdir") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise CannotMount(
                f"{shown} is left from a mount whose process was killed: run `fusermount3 -u {shown}`, and mount again"
            ) from None
        raise CannotMount(f"{shown}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise CannotMount(f"{shown} is not a directory")
    if os.path.ismount(directory):
        raise CannotMount(f"something is mounted at {shown} already: `fusermount3 -u {shown}` unmounts it")
    if names:
        raise CannotMount(f"{shown} is not empty: name an empty directory")
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        raise CannotMount(f"{_DEVICE} is missing, or you may not use it: load the kernel's module with `modprobe fuse`")


def mount(tree: Tree, directory: Path, *, allow_other: bool, ready: Callable[[], None]) -> None:
    """Mount a tree and serve it until it is unmounted, or SIGINT, SIGTERM or SIGHUP comes.

    Only the user who mounts it can read it. Call it from the main thread.

    Args:
        tree: what to mount.
        directory: where.
        allow_other: let all users read what owners and permission bits allow them to.
        ready: called once it is mounted.

    Raises:
        CannotMount: it cannot be mounted.
        ModuleNotFoundError: mfusepy is not installed.
    """
    try:
        import mfusepy
    except OSError:  # its library
        raise CannotMount("libfuse is missing: install the package fuse3") from None

    from taskworker.gateways.fuse.operations import TreeOperations

    begun: list[bool] = []

    def told() -> None:
        begun.append(True)
        ready()

    kept_s = _KEPT_S if tree.immutable else FRESH_S
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # libfuse handles the signals that nobody else does
    try:
        mfusepy.FUSE(
            TreeOperations(tree, told),
            str(directory),
            raw_fi=True,
            foreground=True,
            fsname="taskworker",
            subtype="taskworker",
            ro=True,
            nosuid=True,
            nodev=True,
            use_ino=True,
            attr_timeout=kept_s,
            entry_timeout=kept_s,
            allow_other=allow_other,
            default_permissions=allow_other,
        )
    except RuntimeError as error:
        if not begun:  # libfuse has said why
            raise CannotMount(f"{directory} could not be mounted (libfuse's error {error})") from None
