"""What sandboxes see of the machine: copies, at paths of their own, and few mounts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pydantic
import pytest

from taskworker.sandbox import SandboxHost, runtime_root
from tests.sandbox.bundles import ECHO, begin, program

ROOT = Path(__file__).parents[2]
MOUNTS_MAX = 10
"""The root, our own code, the bundles and what hides them, the function's code, three devices, scratch files."""
EXPECTED = """
import getpass, grp, importlib.metadata, json, locale, mimetypes, os, platform, pwd, ssl

def prepare(document):
    pass

def run(request, channel):
    return json.dumps({
        "user": [getpass.getuser(), pwd.getpwuid(os.getuid()).pw_dir, grp.getgrgid(os.getgid()).gr_name],
        "users": [len(pwd.getpwall()), len(grp.getgrall())],
        "home": os.path.expanduser("~sandbox"),
        "locale": locale.setlocale(locale.LC_ALL, "C.UTF-8"),
        "type": mimetypes.guess_type("a.html")[0],
        "system": [platform.system(), platform.python_version(), platform.node(), bool(platform.platform())],
        "versions": [importlib.metadata.version(name) for name in ("pydantic", "typing_extensions")],
        "authorities": ssl.create_default_context().cert_store_stats()["x509"],
    }).encode()
"""


@pytest.fixture
def root(bundles: Path) -> Iterator[runtime_root.RuntimeRoot]:
    with closing(runtime_root.take(bundles)) as root:
        yield root


def test_modules_name_no_directories_of_the_machine(root: runtime_root.RuntimeRoot) -> None:
    own = {sys.base_prefix, str(ROOT), str(Path(pydantic.__file__).parents[1]), sysconfig.get_path("stdlib")}
    pattern = re.compile(b"|".join(re.escape(place.encode()) + rb"[/\0]" for place in own - {"/usr"}))
    modules = [path for top in (root.top, root.runtime) for path in top.rglob("*") if path.suffix in (".pyc", ".py")]
    assert len(modules) > 1000
    assert [path for path in modules if pattern.search(path.read_bytes())] == []


def test_there_is_no_more_of_the_standard_library_than_programs_use(root: runtime_root.RuntimeRoot) -> None:
    names = {path.name for path in (root.top / "python").rglob("*") if path.is_dir()}
    assert not names & {"test", "tests", "idlelib", "tkinter", "ensurepip", "site-packages", "turtledemo"}
    assert {"asyncio", "json", "email", "sqlite3", "lib-dynload"} <= names


def test_a_function_has_few_mounts(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, ECHO)
    host.warm(image)
    zygote = next(view.pids[1] for view in host.views() if view.key == image.key)
    mounts = Path(f"/proc/{zygote}/mountinfo").read_text().splitlines()
    assert len(mounts) < MOUNTS_MAX, mounts


def test_what_programs_ask_of_a_machine_is_answered(host: SandboxHost, bundles: Path) -> None:
    said = json.loads(begin(host, program(bundles, EXPECTED)).result())
    assert said["user"] == ["sandbox", "/tmp", "sandbox"]
    assert said["users"] == [1, 1]
    assert said["home"] == "/tmp"
    assert said["locale"] == "C.UTF-8"
    assert said["type"] == "text/html"
    assert said["system"][:3] == ["Linux", sys.version.split()[0], "sandbox"]
    assert said["versions"] == [importlib.metadata.version(name) for name in ("pydantic", "typing_extensions")]
    assert said["authorities"] == 0


def test_where_no_root_can_be_shared_a_worker_has_its_own(tmp_path: Path) -> None:
    """In a process of its own: a home that others may write to, for instance."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    source = (
        "import sys; from pathlib import Path; from taskworker.sandbox import runtime_root; "
        "runtime_root.SYSTEM_CACHE = Path(sys.argv[2]); "
        "root = runtime_root.take(Path(sys.argv[1])); print(root.top); print(root.runtime); root.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(bundles), str(shared / "system")],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(shared)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for told in map(Path, done.stdout.split()):
        assert told.is_relative_to(bundles / runtime_root.OWN_DIRECTORY)
        assert any(told.rglob("*.pyc"))
