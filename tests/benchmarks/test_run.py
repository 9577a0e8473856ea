"""The suites run and report at the smallest sizes; how fast they are is not looked at."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import machine
from benchmarks.__main__ import SUITES, main
from benchmarks.progress import RunProgress
from benchmarks.report import read_json
from benchmarks.session import Session, Sizes
from benchmarks.suites import dns, engine, revise_sync

TINY = Sizes(
    rounds=2,
    file_bytes=3 << 20,
    small_pushes=5,
    small_threaded_pushes=32,
    small_gets=10,
    pool_small_files=3,
    pool_small_seconds=0.1,
    plain_small_writes=5,
    many_files=20,
    dns_questions=400,
    reduced=True,
)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path, TINY, RunProgress(Console(file=io.StringIO())))


def test_engine_reports_push_and_get_beside_their_limits(session: Session) -> None:
    result = engine.run(session)
    assert all(len(figure.samples) == len(figure.ratios) == TINY.rounds for figure in result.figures)
    assert [target.mark for target in result.targets] == ["b", "b"]
    assert list(session.directory.iterdir()) == []


def test_revise_sends_and_stores_one_chunk(session: Session) -> None:
    by_text = {target.text: target for target in revise_sync.run(session).targets}
    for text in by_text:
        if "bytes" in text or "stripes" in text:
            assert by_text[text].verdict == "met", text


def test_names_stand_beside_a_bare_echo(session: Session) -> None:
    result = dns.run(session)
    assert [len(figure.samples) for figure in result.figures[:4]] == [TINY.rounds] * 4
    assert [(target.mark, target.bound) for target in result.targets] == [("c", 0.5)]
    assert result.remarks[-1].startswith("0 answers were sent to TCP")


def test_a_run_writes_json_and_markdown_of_all_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("benchmarks.__main__.QUICK", TINY)
    out = tmp_path / "out"
    command = [
        "--quick",
        "--rounds",
        str(TINY.rounds),
        "--suite",
        "small-files",
        "--dir",
        str(tmp_path / "store"),
        "--out",
        str(out),
    ]
    assert main(command) == 0
    plots = {f"small-files{chart}.png" for chart in ("", "-rate", "-latency", "-costs")}
    assert {path.name for path in out.iterdir()} == {"results.json", "results.md"} | plots
    (result,) = read_json(out / "results.json").suites
    assert result.name == "small-files"
    assert [target.bound for target in result.targets] == [0.35, 1.0, 5000, 0.225, 0.6, 0.7, 3000, 6000]
    assert len({figure.name for figure in result.figures}) == len(result.figures)
    assert all(len(figure.samples) == TINY.rounds for figure in result.figures)
    assert main(["compare", str(out / "results.json"), str(out / "results.json")]) == 0
    assert "no difference seen" in capsys.readouterr().out


def test_an_unknown_suite_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--suite", "nonsense"])
    assert stopped.value.code == 2


def test_every_suite_has_its_module() -> None:
    folder = Path(engine.__file__).parent
    assert all((folder / f"{module}.py").exists() for module in SUITES.values())


def test_the_file_system_is_told_by_its_mount(tmp_path: Path) -> None:
    assert machine.file_system(Path("/proc")) == "proc"
    assert machine.file_system(tmp_path) != "unknown"
