"""What a worker run as root requires of the processes that it starts for functions."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest

from taskworker.sandbox import SandboxUnavailable, proof


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a process other ids")
@pytest.mark.parametrize(
    ("ids", "shared"),
    [((0, 65534, []), True), ((65534, 0, []), True), ((65534, 65534, [0]), True), ((65534, 65534, []), False)],
)
def test_a_process_with_any_id_of_the_worker_is_found(ids: tuple[int, int, list[int]], shared: bool) -> None:
    user, group, further = ids
    with subprocess.Popen(["sleep", "60"], user=user, group=group, extra_groups=further) as process:
        try:
            with pytest.raises(SandboxUnavailable) if shared else contextlib.nullcontext():
                proof.require_other_user(process.pid)
        finally:
            process.kill()
