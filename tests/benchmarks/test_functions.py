"""The processes of the functions suite do what is measured of them; how fast they are is not looked at."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from benchmarks.bare_calls import BareClient
from benchmarks.function_processes import WORKERS, BareCalls, FunctionPool, caller_process, message_sizes
from benchmarks.function_servers import BALANCED
from benchmarks.package_functions import PLAIN, PackageFunctions, PackageSamples
from benchmarks.processes import started_together
from benchmarks.progress import RunProgress
from benchmarks.session import QUICK, Session
from benchmarks.suites.functions import Samples, result_of


def test_a_pool_and_a_bare_relay_are_called_by_callers_of_their_own(tmp_path: Path) -> None:
    pool, bare, caller = FunctionPool(tmp_path, pause_s=0.0, slower=1.0), BareCalls(), caller_process()
    with started_together([pool, bare, caller]):
        client = BareClient(bare.address)
        assert len(client.call(bare.request)) == message_sizes()["answer"]
        client.close()
        for measured, is_bare in ((pool, False), (bare, True)):
            taken = caller.run("latencies", address=measured.address, count=3, bare=is_bare)["milliseconds"]
            assert len(taken) == 3
            before_s = measured.cpu_s()
            told = caller.run("sustain", address=measured.address, callers=2, seconds=0.3, bare=is_bare)
            assert told["calls"] > 0
            assert measured.cpu_s() >= before_s > 0
        shares = caller.run("share", address=pool.address, function=BALANCED, callers=4, count=30)["shares"]
        assert sum(shares.values()) == 30
        assert set(shares) <= {f"worker-{number}" for number in range(WORKERS)}


def test_all_targets_are_reported(tmp_path: Path) -> None:
    session = Session(tmp_path, replace(QUICK, rounds=2), RunProgress(Console(file=io.StringIO())))
    two = [1.0, 2.0]
    packages = PackageFunctions(tmp_path)
    packages.samples = {name: PackageSamples([1.0], two, two, two) for name in (PLAIN, "numpy")}
    result = result_of(session, Samples(*[two] * len(fields(Samples))), packages)
    assert [(target.mark, target.bound) for target in result.targets] == [
        ("7a", 4.0),
        ("7a", 5.0),
        ("7a", 300.0),
        ("7a", 10.0),
        ("16b", 5.0),
        ("16b", 400.0),
        ("16b", 2.0),
        ("16b", 900.0),
        ("16b", 1.0),
        ("7d", 0.1),
        ("7d", 0.125),
    ]
    assert len({figure.name for figure in result.figures}) == len(result.figures)
    without_ray = Samples(*[[] if one.name.startswith("ray") else two for one in fields(Samples)])
    assert len(result_of(session, without_ray, packages).targets) == len(result.targets) - 1
