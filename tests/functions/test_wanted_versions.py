"""Processes of versions on a worker: they end with the last version of their code, not with another one."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from storage import FileStorage
from taskworker.calls.bundle import packed
from taskworker.calls.spec import FunctionSpec
from taskworker.errors import FunctionBroken
from taskworker.functions.hosting.host import FunctionHost
from taskworker.functions.hosting.user_files import EmbeddedFiles
from taskworker.sandbox import SandboxUnavailable

WAIT_S = 30.0
CODE = b"def f(): return 1\n"
NEWER = b"def f(): return 2\n"
OTHER = b"def f(): return 3\n"
BROKEN = b"import nothing_of_the_kind\n"


def bring_up(host: FunctionHost, version: str, code: bytes, name: str = "f", isolation: str = "call") -> None:
    host.prepare(host.deployed_function(version, lambda: bundle_of(code, name, isolation)))


def bundle_of(code: bytes, name: str = "f", isolation: str = "call") -> bytes:
    spec = FunctionSpec(name=name, entry="app:f", isolation=isolation)  # type: ignore[arg-type]
    return packed(spec, {"app/app.py": code}).bundle


def opened(directory: Path, stack: contextlib.ExitStack) -> FunctionHost:
    store = stack.enter_context(contextlib.closing(FileStorage.open(directory / "store")))
    host = FunctionHost(
        directory / "functions",
        lambda call, _timeout_s: EmbeddedFiles(store, call.user_id),
        lambda call, _timeout_s, _asking: call.function,
    )
    return stack.enter_context(contextlib.closing(host))


def warm(host: FunctionHost) -> list[tuple[str, tuple[str, ...]]]:
    return sorted((view.name, view.versions) for view in host.views())


@pytest.mark.parametrize("isolation", ["call", "user"])
def test_processes_end_with_the_last_version_of_their_code(tmp_path: Path, isolation: str) -> None:
    with contextlib.ExitStack() as stack:
        host = opened(tmp_path, stack)
        bring_up(host, "tried", CODE, isolation=isolation)
        bring_up(host, "deployed", CODE, isolation=isolation)
        bring_up(host, "other", CODE, name="g", isolation=isolation)
        host.end_versions(["tried", "unknown"])
        bring_up(host, "newer", NEWER, isolation=isolation)
        with pytest.raises(FunctionBroken):
            bring_up(host, "broken", BROKEN, isolation=isolation)
        assert warm(host) == [("f", ("deployed",)), ("f", ("newer",)), ("g", ("other",))]
        host.end_versions(["deployed", "broken"])
        until = time.monotonic() + WAIT_S
        while len(warm(host)) > 2:
            assert time.monotonic() < until, warm(host)
            time.sleep(0.01)
        assert warm(host) == [("f", ("newer",)), ("g", ("other",))]


def test_a_declared_function_that_is_replaced_leaves_the_same_code_to_a_deployed_version(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        host = opened(tmp_path, stack)
        host.register(packed(FunctionSpec(name="f", entry="app:f"), {"app/app.py": CODE}))
        bring_up(host, "deployed", CODE)
        bring_up(host, "ended", OTHER)
        host.register(packed(FunctionSpec(name="f", entry="app:f"), {"app/app.py": NEWER}))
        host.end_versions(["ended"])
        until = time.monotonic() + WAIT_S
        while len(warm(host)) > 1:  # both are looked at together
            assert time.monotonic() < until, warm(host)
            time.sleep(0.01)
        assert warm(host) == [("f", ("deployed",))]


def test_a_late_call_of_a_version_that_was_ended_does_not_keep_its_processes(tmp_path: Path) -> None:
    """The call found its function before the pool's answer came, and took a process after it."""
    with contextlib.ExitStack() as stack:
        host = opened(tmp_path, stack)
        bring_up(host, "deployed", NEWER)
        late = host.deployed_function("replaced", lambda: bundle_of(CODE))
        host.end_versions(["replaced"])
        host.prepare(late)
        assert warm(host) == [("f", ()), ("f", ("deployed",))]
        host.end_versions([])  # as after each further offer
        until = time.monotonic() + WAIT_S
        while len(warm(host)) > 1:
            assert time.monotonic() < until, warm(host)
            time.sleep(0.01)
        assert warm(host) == [("f", ("deployed",))]


def test_a_sandbox_that_cannot_be_started_now_is_started_later(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        host = opened(tmp_path, stack)
        (tmp_path / "functions").rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(SandboxUnavailable, match="could not be started"):
                host.start()
        (tmp_path / "away").rename(tmp_path / "functions")
        bring_up(host, "later", CODE)
        assert warm(host) == [("f", ("later",))]
