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
from typing import Any

import blake3
import pytest

from storage.errors import InvalidArgument
from taskworker.calls.bundle import PackedPackage
from taskworker.calls.platform import Platform, best_of, to_cover
from taskworker.calls.spec import FunctionSpec
from taskworker.functions.packing.declared import pack_function
from taskworker.functions.packing.directory import CodeDirectory
from taskworker.functions.packing.modules import pack_module
from tests.functions.wheels import made_wheel

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


def _written(root: Path, sources: dict[str, str]) -> None:
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def _travelling(entry: str, root: Path, **options: Any) -> list[str]:
    return sorted(path.removeprefix("app/") for path in pack_module(entry, SPEC, root=root, **options).files)


def test_a_package_brings_all_of_it(tmp_path: Path) -> None:
    _written(tmp_path, {"other.py": ""})
    package = tmp_path / "package" / "inner"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py", package / "deep.py", package / "words.txt"):
        path.write_text("")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "deep.pyc").write_bytes(b"")
    assert _travelling("package.inner.deep:f", tmp_path) == [
        "package/__init__.py",
        "package/inner/__init__.py",
        "package/inner/deep.py",
        "package/inner/words.txt",
    ]


def test_a_module_brings_what_it_imports_of_its_directory(tmp_path: Path) -> None:
    imported = {
        "entry.py": "import json, first\nfrom package.inner import deep\n\n\ndef f():\n    from lazy import x\n",
        "first.py": "import importlib\n\nif False:\n    import second\nnamed = importlib.import_module('third')\n",
        "second.py": "import first, entry, absent\n",
        "third.py": "this is no python\n",
        "lazy.py": "import spaces.deep.module\n",
        "spaces/deep/module.py": "",
        "package/__init__.py": "",
        "package/inner.py": "import fourth\n",
        "fourth.py": "from . import nothing\n",
        "json.py": "",
    }
    _written(tmp_path, imported)
    _written(tmp_path, {"other.py": "import pydantic, taskworker.inside", "data/script.py": "import other\n"})
    _written(tmp_path, {"pydantic.py": "a sandbox has its own", "taskworker.py": "likewise"})
    assert _travelling("entry:f", tmp_path) == sorted(imported)
    assert _travelling("fourth:f", tmp_path, modules=["other"]) == ["fourth.py", "other.py"]
    assert _travelling("fourth:f", tmp_path, include=["data"]) == ["data/script.py", "fourth.py", "other.py"]


@pytest.mark.parametrize("name", [".plugins", "..", "", "../other", ".env", "a-b"])
def test_names_that_are_no_module_s_bring_nothing_of_the_directory(tmp_path: Path, name: str) -> None:
    """Imported by such a name, or missing under it: that is said by code, that of packages among it."""
    sources = {
        "entry.py": "import package\n\n\ndef f(): ...\n",
        "package/__init__.py": f"import importlib\nimportlib.import_module({name!r}, __name__)\n__import__({name!r})\n",
        "package/plugins.py": "",
        "stranger.py": "",
        ".env": "PASSWORD=1",
        "id_ed25519": "a private key",
    }
    _written(tmp_path, sources)
    expected = ["entry.py", "package/__init__.py", "package/plugins.py"]
    assert _travelling("entry:f", tmp_path) == expected
    assert _travelling("entry:f", tmp_path, modules=[name]) == expected
    assert not CodeDirectory(tmp_path).has(name)


def test_data_files_travel_if_they_are_included(tmp_path: Path) -> None:
    _written(tmp_path, {"single.py": ""})
    for name in ("words.txt", "pages/a.html", "pages/deep/b.html", "pages/c.css"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    taken = _travelling("single:f", tmp_path, include=["words.txt", "pages/**/*.html"])
    assert taken == ["pages/a.html", "pages/deep/b.html", "single.py", "words.txt"]
    assert _travelling("single:f", tmp_path, include=["pages"])[:3] == [
        "pages/a.html",
        "pages/c.css",
        "pages/deep/b.html",
    ]
    for pattern in ("absent*", "../words.txt", "pages/../words.txt", str(tmp_path / "words.txt"), ""):
        with pytest.raises(InvalidArgument, match="include"):
            _travelling("single:f", tmp_path, include=[pattern])


def test_links_and_special_files_are_refused_by_name(tmp_path: Path) -> None:
    _written(
        tmp_path, {"single.py": "", "package/__init__.py": "", "linking.py": "import linked", "linked/inner.py": ""}
    )
    (tmp_path / "package" / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgument, match=r"package/link\.py is a symbolic link"):
        _travelling("package:f", tmp_path)
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe")
    with pytest.raises(InvalidArgument, match=r"data/pipe is a named pipe"):
        _travelling("single:f", tmp_path, include=["data"])
    (tmp_path / "elsewhere").symlink_to("package")
    with pytest.raises(InvalidArgument, match=r"elsewhere is a symbolic link"):
        _travelling("single:f", tmp_path, include=["elsewhere/*.py"])
    (tmp_path / "linked").rename(tmp_path / "real")
    (tmp_path / "linked").symlink_to("real")
    with pytest.raises(InvalidArgument, match=r"linked is a symbolic link"):
        _travelling("linking:f", tmp_path)


@pytest.mark.parametrize("entry", ["absent:f", "single", "single:", ":f", "../single:f", "single.deeper:f", "a b:f"])
def test_a_module_that_is_not_there_is_told(tmp_path: Path, entry: str) -> None:
    (tmp_path / "single.py").write_text("")
    with pytest.raises(InvalidArgument):
        pack_module(entry, SPEC, root=tmp_path)


def test_requirements_are_installed_and_locked(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import greeting\n")
    requirements = tmp_path / "requirements.txt"
    wheel = made_wheel(tmp_path, "greeting", {"greeting/__init__.py": "WORD = 1", "greeting/bin/tool.py": "WORD = 2"})
    requirements.write_text(f"{wheel}\n")
    packed = pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)
    assert (packed.spec.requirements, packed.spec.platforms) == (("greeting==1.2",), {})
    theirs = [size for path, size in packed.files.items() if path.startswith("dependencies/")]
    assert packed.packages == (PackedPackage("greeting==1.2", "", len(theirs), sum(theirs)),)
    assert str(tmp_path).encode() not in packed.bundle
    assert files_of(packed.bundle)["dependencies/greeting/__init__.py"] == b"WORD = 1"
    assert files_of(packed.bundle)["dependencies/greeting/bin/tool.py"] == b"WORD = 2"
    requirements.write_text("./absent-1.0-py3-none-any.whl\n")
    with pytest.raises(InvalidArgument, match="pip could not install"):
        pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)


def test_a_package_brings_no_files_of_this_machine_whatever_its_record_says(tmp_path: Path) -> None:
    """What a wheel's RECORD has beside its files, pip keeps."""
    (tmp_path / "app.py").write_text("import sly\n")
    private = tmp_path / "private" / "id_ed25519"
    private.parent.mkdir()
    private.write_text("a private key")
    outside = [str(private), f"sly/../../..{private}", f"/{private}"]
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"{made_wheel(tmp_path, 'sly', {'sly/__init__.py': 'WORD = 1'}, listed=outside)}\n")
    packed = pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)
    assert files_of(packed.bundle)["dependencies/sly/__init__.py"] == b"WORD = 1"
    assert not [path for path in files_of(packed.bundle) if private.name in path]
    assert b"a private key" not in packed.bundle


def test_compiled_packages_are_locked_for_each_platform(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import fast\n")
    old, new = Platform.of("3.11-x86_64-glibc2.28"), Platform.of("3.13-aarch64-musl1.2")
    made_wheel(tmp_path, "pure", {"pure.py": ""})
    tags = ("cp311-cp311-manylinux_2_17_x86_64", "cp39-abi3-musllinux_1_1_aarch64", "cp311-cp311-manylinux_2_31_x86_64")
    for tag in tags:
        made_wheel(tmp_path, "fast", {"fast/core.so": tag, "fast/__init__.py": ""}, tag)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"--no-index\n--find-links {tmp_path}\nfast\npure\n")
    one = pack_module("app:f", SPEC, root=tmp_path, requirements=requirements, platforms=[old])
    assert (one.spec.requirements, one.spec.platforms) == (("fast==1.2", "pure==1.2"), {old.tag: ()})
    assert files_of(one.bundle)["dependencies/fast/core.so"] == tags[0].encode()
    both = pack_module("app:f", SPEC, root=tmp_path, requirements=requirements, platforms=[old, new])
    assert both.spec.requirements == ("pure==1.2",)
    assert both.spec.platforms == {old.tag: ("fast==1.2",), new.tag: ("fast==1.2",)}
    assert FunctionSpec.from_json(both.spec.to_json()) == both.spec
    files = files_of(both.bundle)
    assert files[f"platforms/{old.tag}/fast/core.so"] == tags[0].encode()
    assert files[f"platforms/{new.tag}/fast/core.so"] == tags[1].encode()
    assert "dependencies/pure.py" in files
    listed = [(one.package, one.platform) for one in both.packages]
    assert listed == [("pure==1.2", ""), ("fast==1.2", old.tag), ("fast==1.2", new.tag)]
    other = Platform.of("3.12-x86_64-glibc2.28")
    with pytest.raises(InvalidArgument, match=r"for 3\.12-x86_64-glibc2\.28, from wheels alone"):
        pack_module("app:f", SPEC, root=tmp_path, requirements=requirements, platforms=[other])


def test_a_platform_runs_what_was_made_for_an_earlier_c_library() -> None:
    here = Platform.of("3.11-x86_64-glibc2.36")
    assert here.tag == "3.11-x86_64-glibc2.36"
    others = ["3.11-x86_64-glibc2.28", "3.11-x86_64-glibc2.39", "3.11-aarch64-glibc2.28", "3.12-x86_64-glibc2.28"]
    others += ["3.11-x86_64-musl1.2", "3.11-x86_64-glibc2.9"]
    assert [tag for tag in others if here.runs(Platform.of(tag))] == [others[0], others[5]]
    assert best_of(others, here) == others[0]
    assert best_of(others[1:5], here) is None
    covered = [one.tag for one in to_cover([here, *map(Platform.of, others)])]
    assert covered == sorted([others[5], *others[2:5]])
    for garbage in ("", "3.11", "3.11-x86_64-glibc", "3.11-../../x-glibc2.3", "3-x86_64-glibc2.3", "x" * 1000):
        with pytest.raises(InvalidArgument, match="is not a platform"):
            Platform.of(garbage)


def test_other_versions_of_what_every_sandbox_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import typing_extensions\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"{made_wheel(tmp_path, 'typing_extensions', {'typing_extensions.py': 'OLD = 1'})}\n")
    own = re.escape(f"typing_extensions=={version('typing_extensions')}")
    with pytest.raises(InvalidArgument, match=f"every sandbox has .*{own}"):
        pack_module("app:f", SPEC, root=tmp_path, requirements=requirements)


def test_what_is_packed_twice_is_the_same() -> None:
    assert pack_function(uses_helper, SPEC) == pack_function(uses_helper, SPEC)
    assert sys.modules[__name__].FACTOR == 3
