"""A pool, six workers and a user on machines of their own, by the how-to page; over good lines and over bad ones."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from tests.cluster.campaign.run import Run
from tests.cluster.hosts.following import NAMES, POOL, USER, WORKERS, Following
from tests.cluster.hosts.network import Hosts, why_not
from tests.cluster.hosts.planted import CONTENT, USER_NAME, found_in, planted
from tests.cluster.links.shape import Shape

_LINES = {
    "lines as fast as the kernel": None,
    "50 ms ± 20 and 2 % lost on all lines": Shape(delay_ms=50, jitter_ms=20, loss=0.02),
}
_BYTES = 2 << 20
_SUSPICIONS = ("suspect", "lost", "left")
_LOST = ("worker2 ", "worker5 ", "worker6 ")
"""Those that the page has switched off, or denies."""
_SECRET = "planted-secret-of-a-function"
_FUNCTION = """
from taskworker.inside import worker

def secret_length() -> int:
    return len(worker.get_secret("api_key"))
"""


def hosts(run: Run) -> None:
    """Follow the page, look for what was planted, and measure what a user's line carries for N seconds."""
    if why := why_not():
        run.verdicts.note(f"SKIPPED, nothing is shown: {why}")
        return
    for number, (name, shape) in enumerate(_LINES.items()):
        _play(run, name, shape, run.directory / str(number))


def _play(run: Run, name: str, shape: Shape | None, directory: Path) -> None:
    verdicts = run.verdicts
    directory.mkdir()
    capture = directory / "capture"
    with Hosts(len(NAMES), capture, directory / "disks", NAMES, shape) as machines:
        content = (CONTENT * ((2 << 20) // len(CONTENT))).encode() + run.rng.randbytes(4 << 20)
        (machines.disk(USER) / "accounts-2026.ods").write_bytes(content)
        with Following(machines, directory) as following:
            following.follow(lambda command: verdicts.progress(command[:100]))
            verdicts.check(f"{name}: all that the page says", "done, and came out as it says", holds=True)
            _use_a_secret(following)
            words = planted(following) | {"the function's secret": _SECRET.encode()}
            _measure(run, name, following)
            status = json.loads(following.run(0, "taskworker status --json").stdout)
            events = [event for event in status["events"] if event["kind"] in _SUSPICIONS]
            false = [event["text"] for event in events if not any(lost in f"{event['text']} " for lost in _LOST)]
            verdicts.errors(f"{name}: false suspicions", false)
        verdicts.check(
            f"{name}: MiB that passed", f"{capture.stat().st_size / (1 << 20):.0f}",
            holds=capture.stat().st_size > 4 * len(content),
        )  # fmt: skip
        verdicts.errors(f"{name}: planted words in what passed ({len(words)} words)", found_in(capture, words))
        disks = [text for number in range(1, 1 + WORKERS) for text in found_in(machines.disk(number), words)]
        verdicts.errors(f"{name}: planted words on workers' disks", disks)
        for what, disk in (("pool's", 0), ("user's", USER)):
            found = sorted(
                {text.replace(str(machines.disk(disk)), "") for text in found_in(machines.disk(disk), words)}
            )
            verdicts.note(f"on the {what} disk, which is trusted: {'; '.join(found) or 'none'}")
    capture.unlink()


def _use_a_secret(following: Following) -> None:
    """The operator keeps a secret, and a function on some worker uses it."""
    (following.hosts.disk(0) / "app.py").write_text(_FUNCTION)
    for command, answer in (
        ("taskworker secret set api_key", _SECRET),
        ("taskworker secret grant api_key secret_length", ""),
        ("taskworker deploy secret_length app:secret_length", ""),
    ):
        done = following.run(0, command, answer)
        assert done.returncode == 0, f"{command}: {done.stdout}"
    called = following.run(USER, "taskworker call secret_length")
    assert called.stdout.strip() == str(len(_SECRET)), called.stdout


def _measure(run: Run, name: str, following: Following) -> None:
    machines = following.hosts
    command = [*machines.inside(0), sys.executable, "-m", "tests.cluster.links.plain", machines.address(0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as plain:
        try:
            assert plain.stdout is not None
            port = plain.stdout.readline().strip()
            arguments = f"{POOL}:50051 {USER_NAME} {machines.address(0)} {port} {_BYTES} {run.rounds}"
            told = following.run(USER, f"{sys.executable} -m tests.cluster.hosts.throughput {arguments}")
        finally:
            plain.kill()
    assert told.returncode == 0, told.stdout
    taken: dict[str, list[float]] = json.loads(told.stdout.splitlines()[-1])
    for what in ("push", "get"):
        rate, plain_rate = (_BYTES / 1e6 / statistics.fmean(taken[each]) for each in (what, f"plain {what}"))
        run.verdicts.note(
            f"{name}: {what} {rate:.2f} MB/s, {rate / plain_rate:.2f} times a plain TCP connection over the same line "
            f"({plain_rate:.2f} MB/s); {len(taken[what])} times, {min(taken[what]):.2f} to {max(taken[what]):.2f} s"
        )
