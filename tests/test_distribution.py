"""What is published works where nothing but it is installed: the source archive, and the wheel made from it."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import taskworker

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 120


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TASKWORKER_", "PYTHON"))}
    ended = subprocess.run(
        command, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as a release is: from the source archive, not from the clone."""
    directory = tmp_path_factory.mktemp("distribution")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory, cwd=ROOT)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    source = directory / archive.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=source)
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of an environment are that has the wheel, and of this one the dependencies alone."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    # Files of the same kind in that directory, such as the one by which it finds this clone, are not followed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_wheel_has_the_packages_and_the_contract_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"storage", "taskworker"}
    assert {"storage/py.typed", "taskworker/py.typed"} <= set(names)
    contract = {path.name for path in (ROOT / "protos").glob("*.proto")}
    assert {Path(name).name for name in names if name.startswith("taskworker/protos/")} >= contract


def test_wheel_tells_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = email.message_from_bytes(archive.read(name))
    assert told["Version"] == taskworker.__version__
    assert "functions" in told["Summary"]
    assert "pools" in told["Summary"]
    assert "\n# TaskWorker\n" in "\n" + str(told.get_payload())


def test_command_and_library_come_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    assert run(programs / "taskworker", "--version", cwd=tmp_path) == f"taskworker {taskworker.__version__}\n"
    code = "import storage, taskworker; print(storage.__file__); print(taskworker.__file__)"
    for place in run(programs / "python", "-c", code, cwd=tmp_path).splitlines():
        assert Path(place).is_relative_to(programs.parent)
    (tmp_path / "a.txt").write_text("hello")
    run(programs / "taskworker", "--store", "store", "push", "a.txt", cwd=tmp_path)
    assert run(programs / "taskworker", "--store", "store", "get", "a.txt", "-o", "-", cwd=tmp_path) == "hello"


def test_a_module_of_the_users_own_called_storage_is_no_obstacle(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "storage.py").write_text("theirs = True\n")
    (tmp_path / "a.txt").write_text("hello")
    code = "import storage, taskworker; print(storage.theirs, taskworker.FileStorage.__name__)"
    assert run(programs / "python", "-c", code, cwd=tmp_path) == "True FileStorage\n"
    run(programs / "python", "-m", "taskworker", "--store", "store", "push", "a.txt", cwd=tmp_path)
    assert run(programs / "taskworker", "--store", "store", "get", "a.txt", "-o", "-", cwd=tmp_path) == "hello"
