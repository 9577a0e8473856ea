"""A user's own module called ``storage`` and the engine are used in one program, and the engine is loaded once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

TIMEOUT_S = 120
THEIRS = "import taskworker\n\ndef double(x):\n    return 2 * x\n"


@pytest.fixture(params=["module", "package"])
def shadowed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with a module, or a package, called storage; it imports taskworker itself."""
    if request.param == "module":
        (tmp_path / "storage.py").write_text(THEIRS)
    else:
        (tmp_path / "storage").mkdir()
        (tmp_path / "storage" / "__init__.py").write_text(THEIRS)
        (tmp_path / "storage" / "errors.py").write_text("")
    return tmp_path


def run(program: str, directory: Path) -> str:
    """What a program prints that is a file of a directory, and so finds that directory's modules first."""
    (directory / "program.py").write_text(dedent(program))
    return ended([sys.executable, "program.py"], directory)


def ended(command: list[str], directory: Path) -> str:
    process = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


USE_BOTH = """
    import pickle
    import sys
    from collections import Counter
    from pathlib import Path

    {imports}
    from taskworker import AsyncClient, Client, FileStorage, TaskWorker
    from taskworker.storage.errors import FileNotFound, StorageError
    from taskworker.client import local_files
    from taskworker.errors import ServerBusy

    assert storage.double(3) == 6, storage
    assert issubclass(ServerBusy, StorageError)
    with FileStorage.open("data") as store:
        version = store.push(b"hello", filename="a.txt", user_id="ann")
        assert store.get(version.file_id, user_id="ann") == b"hello"
        try:
            store.get("b.txt", user_id="ann")
        except FileNotFound as error:
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is FileNotFound and str(again) == str(error)
        else:
            raise AssertionError

    loaded = {{(getattr(module, "__file__", None), id(module)) for module in [*sys.modules.values()]}}
    files = Counter(file for file, _ in loaded if file)
    assert max(files.values()) == 1, files.most_common(3)
    print("works")
"""


@pytest.mark.parametrize("imports", ["import storage", "import taskworker; import storage"])
def test_both_are_used_in_one_program(shadowed: Path, imports: str) -> None:
    assert run(USE_BOTH.format(imports=imports), shadowed) == "works\n"


def test_the_command_works_beside_it(shadowed: Path) -> None:
    command = [sys.executable, "-m", "taskworker", "--store", "data"]
    (shadowed / "a.txt").write_text("hello")
    ended([*command, "push", "a.txt"], shadowed)
    assert ended([*command, "get", "a.txt", "-o", "-"], shadowed) == "hello"


def test_a_function_takes_it_along(shadowed: Path) -> None:
    program = """
        import pickle
        import storage
        from taskworker.calls.spec import spec_from_options
        from taskworker.functions.packing.declared import pack_function

        def six() -> int:
            return storage.double(3)

        print(*pack_function(six, spec_from_options("six", "pickle:unset", {})).spec.own_modules)
    """
    assert run(program, shadowed).split() == ["__main__", "storage"]


@pytest.fixture
def pool(shadowed: Path) -> Iterator[str]:
    """The address of a pool with workers, all of them started in the directory."""
    arguments = ["up", "--dir", "pool", "--workers", "4", "--k", "2", "--n", "4", "--listen", "127.0.0.1:0", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "taskworker", *arguments], cwd=shadowed, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = b""
    while True:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, told
        told += piece
        if told.rstrip().endswith(b"}"):
            break
    yield str(json.loads(told)["pool"])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("shadowed", ["module"], indirect=True)
def test_a_pool_works_beside_it(pool: str, shadowed: Path) -> None:
    program = f"""
        import storage
        from taskworker import Client

        with Client("{pool}") as client:
            version = client.push(b"hello", filename="a.txt", user_id="ann")
            assert client.get(version.file_id, user_id="ann") == b"hello"
            print(len(client.list_files(user_id="ann")), storage.double(1))
    """
    assert run(program, shadowed) == "1 2\n"


@pytest.mark.parametrize("first", ["storage.errors", "taskworker.storage.errors"])
def test_without_such_a_module_both_names_give_the_engine(first: str, tmp_path: Path) -> None:
    program = f"""
        import {first}
        import storage, storage.stripes, taskworker
        import taskworker.storage, taskworker.storage.errors, taskworker.storage.write.upload

        assert taskworker.storage is storage
        assert taskworker.storage.errors is storage.errors
        assert taskworker.storage.write.upload.__name__ == "storage.write.upload"
        assert taskworker.storage.FileStorage is taskworker.FileStorage is storage.FileStorage
        assert storage.FileStorage.__module__ == "storage.engine.store"
        try:
            import taskworker.storage.nothing
        except ModuleNotFoundError as error:
            print(error)
    """
    assert run(program, tmp_path) == "No module named 'storage.nothing'\n"


def test_a_module_that_comes_first_in_no_import_is_no_obstacle(tmp_path: Path) -> None:
    """The engine then has its longer name, and ``import storage`` gives the same modules."""
    (tmp_path / "storage.py").write_text("")
    program = """
        import sys
        sys.path.remove(sys.path[0])
        import taskworker
        import storage, storage.errors, taskworker.storage.errors

        assert storage is taskworker.storage
        assert storage.errors is taskworker.storage.errors
        assert storage.FileStorage.__module__ == "taskworker.storage.engine.store"
        print("works")
    """
    assert run(program, tmp_path) == "works\n"
