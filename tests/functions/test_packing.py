"""What of a program, or of a directory, can be sent into a sandbox."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import socket
import sys
import tarfile
import threading
from importlib.metadata import version
from pathlib import Path

import blake3
import pytest

from storage.errors import InvalidArgument
from taskworker.functions.packing import pack_function, pack_module
from taskworker.functions.spec import FunctionSpec

SPEC = FunctionSpec(name="f", entry="pickle:unset")
FACTOR = 3
LOCK = threading.Lock()


def helper(value: int) -> int:
    return value * FACTOR


def uses_helper(value: int) -> str:
    return json.dumps(helper(value))


def uses_lock() -> None:
    with LOCK:
        pass


def uses_os() -> int:
    return os.getpid()


def uses_os_within() -> int:
    import os

    return os.getpid()


def uses_package() -> str:
    return blake3.blake3(b"").hexdigest()


def files_of(bundle: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def test_a_function_brings_what_it_refers_to() -> None:
    packed = pack_function(uses_helper, SPEC)
    assert packed.spec.entry == "pickle:function.pickle"
    assert __name__ in packed.spec.own_modules
    pickled = files_of(packed.bundle)["app/function.pickle"]
    assert pickle.loads(pickled)(4) == "12"
    # By value: this module need not be there where it is loaded. Nothing tells where it was here.
    assert b"helper" in pickled
    assert str(Path(__file__).parent).encode() not in packed.bundle


def test_closures_and_lambdas_go_too() -> None:
    secret = 5
    packed = pack_function(lambda value: value + secret, SPEC)
    assert pickle.loads(files_of(packed.bundle)["app/function.pickle"])(1) == 6


def test_what_cannot_travel_is_named() -> None:
    with socket.socket() as open_socket:

        def talks() -> int:
            return open_socket.fileno()

        with pytest.raises(
            InvalidArgument, match=r"'open_socket', a socket, which cannot be packed .*inside the function"
        ):
            pack_function(talks, SPEC)
    with pytest.raises(InvalidArgument, match=r"'LOCK', a lock"):
        pack_function(uses_lock, SPEC)


def test_modules_that_functions_do_not_have_are_told_at_once() -> None:
    with pytest.raises(InvalidArgument, match=r"uses module 'os'.*worker\.storage"):
        pack_function(uses_os, SPEC)
    with pytest.raises(
        InvalidArgument, match=r"uses module 'blake3', which a sandbox does not have.*taskworker deploy"
    ):
        pack_function(uses_package, SPEC)
    pack_function(uses_os_within, SPEC)  # that is told when it is called


def test_a_module_brings_its_file_and_a_package_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text("def f(): ...\n")
    (tmp_path / "other.py").write_text("")
    package = tmp_path / "package" / "inner"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py", package / "deep.py"):
        path.write_text("")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "deep.pyc").write_bytes(b"")
    (package / "link.py").symlink_to("/etc/passwd")
    assert sorted(files_of(pack_module("single:f", SPEC, root=tmp_path).bundle)) == ["app/single.py", "function.json"]
    assert sorted(files_of(pack_module("package.inner.deep:f", SPEC, root=tmp_path).bundle)) == [
        "app/package/__init__.py",
        "app/package/inner/__init__.py",
        "app/package/inner/deep.py",
        "function.json",
    ]


@pytest.mark.parametrize("entry", ["absent:f", "single", "single:", ":f", "../single:f", "single.deeper:f", "a b:f"])
def test_a_module_that_is_not_there_is_told(tmp_path: Path, entry: str) -> None:
    (tmp_path / "single.py").write_text("")
    with pytest.raises(InvalidArgument):
        pack_module(entry, SPEC, root=tmp_path)


def _wheel(directory: Path, name: str, files: dict[str, str]) -> Path:
    """A wheel made by hand, as no index is asked in tests."""
    import zipfile

    path = directory / f"{name}-1.2-py3-none-any.whl"
    info = f"{name}-1.2.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*contents, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


def test_requirements_are_installed_locked_and_pure(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import greeting\n")
    requirements = tmp_path / "requirements.txt"
    wheel = _wheel(tmp_path, "greeting", {"greeting/__init__.py": "WORD = 1", "greeting/bin/tool.py": "WORD = 2"})
    requirements.write_text(f"{wheel}\n")
    packed = pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)
    assert packed.spec.requirements == ("greeting==1.2",)
    assert files_of(packed.bundle)["dependencies/greeting/__init__.py"] == b"WORD = 1"
    assert files_of(packed.bundle)["dependencies/greeting/bin/tool.py"] == b"WORD = 2"
    requirements.write_text(f"{_wheel(tmp_path, 'native', {'native/fast.so': ''})}\n")
    with pytest.raises(InvalidArgument, match=r"native 1\.2 has compiled code \(native/fast\.so\)"):
        pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)
    requirements.write_text("./absent-1.0-py3-none-any.whl\n")
    with pytest.raises(InvalidArgument, match="pip could not install"):
        pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)


def test_other_versions_of_what_every_sandbox_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import typing_extensions\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"{_wheel(tmp_path, 'typing_extensions', {'typing_extensions.py': 'OLD = 1'})}\n")
    own = re.escape(f"typing_extensions=={version('typing_extensions')}")
    with pytest.raises(InvalidArgument, match=f"every sandbox has .*{own}"):
        pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)


def test_what_is_packed_twice_is_the_same() -> None:
    assert pack_function(uses_helper, SPEC) == pack_function(uses_helper, SPEC)
    assert sys.modules[__name__].FACTOR == 3
