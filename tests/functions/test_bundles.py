"""Specs, bundles, and where they are unpacked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import FormatError, InvalidArgument, StorageError
from taskworker.calls.bundle import BundleCache, key_of, packed, spec_of
from taskworker.calls.call import Call, RunningCall
from taskworker.calls.spec import KEEP_MAX, FunctionSpec, limits_from_text
from taskworker.errors import FunctionsUnavailable
from taskworker.functions.hosting.host import FunctionHost
from taskworker.functions.hosting.user_files import EmbeddedFiles
from taskworker.sandbox import Keep, Limits

SPEC = FunctionSpec(name="f", entry="app:f")
FILES = {"app/app.py": b"def f(): return 1\n", "dependencies/x/__init__.py": b""}


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


DOCUMENT = (entry("function.json"), SPEC.to_json())


def test_a_bundle_says_what_it_is_and_is_the_same_each_time() -> None:
    bundle = packed(SPEC, FILES).bundle
    assert spec_of(bundle) == SPEC
    assert packed(SPEC, dict(reversed(FILES.items()))).bundle == bundle
    assert key_of(bundle) != key_of(packed(SPEC, {**FILES, "app/app.py": b""}).bundle)


def test_a_bundle_is_unpacked_once_and_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / ".leftover").mkdir()
    cache = BundleCache(tmp_path)
    bundle = packed(SPEC, FILES).bundle
    root = cache.add(bundle)
    assert {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()} == {
        **FILES,
        "function.json": SPEC.to_json(),
    }
    assert cache.add(bundle) == root == cache.find(key_of(bundle))
    assert sorted(path.name for path in tmp_path.iterdir()) == [key_of(bundle)]


def test_a_sandbox_of_another_user_can_read_what_a_private_umask_unpacks(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        root = BundleCache(tmp_path).add(packed(SPEC, FILES).bundle)
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_the_least_lately_used_bundles_go(tmp_path: Path) -> None:
    cache = BundleCache(tmp_path, kept=2)
    bundles = [packed(SPEC, {"app/app.py": bytes([number])}).bundle for number in range(3)]
    for bundle in bundles[:2]:
        cache.add(bundle)
    cache.find(key_of(bundles[0]))
    cache.add(bundles[2])
    assert [cache.find(key_of(bundle)) is not None for bundle in bundles] == [True, False, True]


def test_bundles_in_use_do_not_go(tmp_path: Path) -> None:
    bundles = [packed(SPEC, {"app/app.py": bytes([number])}).bundle for number in range(5)]
    in_use = {key_of(bundles[0]), key_of(bundles[1])}
    cache = BundleCache(tmp_path, kept=2, in_use=lambda: in_use)
    for bundle in bundles:
        cache.add(bundle)
    assert [cache.find(key_of(bundle)) is not None for bundle in bundles] == [True, True, False, False, True]
    in_use.clear()
    cache.add(bundles[3])
    assert len(list(tmp_path.iterdir())) == 2
    assert cache.find(key_of(bundles[3])) is not None


def hosting_nothing(directory: Path, keep_max: Keep = KEEP_MAX) -> FunctionHost:
    def called(_call: Call, _timeout_s: float | None, _asking: RunningCall) -> str:
        raise AssertionError("nothing is called")

    def files(_call: Call, _timeout_s: float | None) -> EmbeddedFiles:
        raise AssertionError("nothing is called")

    return FunctionHost(directory, files, called, keep_max=keep_max)


def test_a_worker_s_own_functions_stay_and_come_back(tmp_path: Path) -> None:
    with contextlib.closing(hosting_nothing(tmp_path)) as host:
        host.register(packed(FunctionSpec(name="own", entry="app:f"), FILES))
        for number in range(260):
            bundle = packed(SPEC, {"app/app.py": b"%d" % number}).bundle
            host.deployed_function(str(number), lambda bundle=bundle: bundle)  # type: ignore[misc]
        root = host.own_function("own").image.root
        assert (root / "app/app.py").read_bytes() == FILES["app/app.py"]
        assert len(list(tmp_path.iterdir())) == 256
        shutil.rmtree(root)  # as a cleaner of temporary files does
        assert (host.own_function("own").image.root / "app/app.py").read_bytes() == FILES["app/app.py"]


def test_a_worker_s_operator_says_how_long_processes_serve_a_user(tmp_path: Path) -> None:
    with contextlib.closing(hosting_nothing(tmp_path, Keep(calls=10, seconds=60.0))) as host:
        for isolation, calls, seconds, kept in (
            ("user", 1000, 5.0, Keep(10, 5.0)),
            ("user", 3, 300.0, Keep(3, 60.0)),
            ("call", 3, 5.0, None),
        ):
            spec = FunctionSpec("own", "app:f", isolation=isolation, process_calls=calls, process_s=seconds)  # type: ignore[arg-type]
            host.register(packed(spec, FILES))
            assert host.own_function("own").image.keep == kept


@pytest.mark.parametrize(
    "bad",
    [
        entry("../out"),
        entry("/etc/passwd"),
        entry("app/../../out"),
        entry("elsewhere/x"),
        entry("app"),
        entry("app/link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("app/hard", tarfile.LNKTYPE, "function.json"),
        entry("app/device", tarfile.CHRTYPE),
        entry("app/pipe", tarfile.FIFOTYPE),
        entry("function.json"),
    ],
    ids=lambda info: info.name,
)
def test_nothing_but_plain_files_below_its_directories_is_taken(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    cache = BundleCache(tmp_path / "cache")
    with pytest.raises(FormatError, match="does not belong"):
        cache.add(archive(DOCUMENT, (bad, b"")))
    assert not list((tmp_path / "cache").iterdir())
    assert not (tmp_path / "out").exists()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = entry(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def nameless(prefix: str, size: bytes = b"00000000000\0") -> bytes:
    """A header whose name is all in its prefix: its first byte is zero, and it is no end of the archive."""
    raw = bytearray(header("x"))
    raw[0], raw[124:136], raw[257:265], raw[345 : 345 + len(prefix)] = 0, size, b"ustar\x0000", prefix.encode()
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw):06o}\0 ".encode()
    return bytes(raw)


def with_pax(**records: str) -> bytes:
    info = entry("app/x")
    info.pax_headers = records
    return archive(DOCUMENT, (info, b""))


def of_files(*names: str) -> bytes:
    return archive(DOCUMENT, *((entry(name), b"") for name in names))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "too many entries": lambda: b"".join(header(f"app/{number}") for number in range(20_001)),
    "more than there is": lambda: header("app/x", 1 << 25),
    "larger than octal digits say": lambda: header("app/x", 1 << 40),
    "no size": lambda: header("app/x").replace(b"00000000000\0", b"-0000000001\0", 1),
    "entries without a first byte": lambda: (
        header("app/x") + b"".join(nameless(f"app/{number}") for number in range(20_000))
    ),
    "a negative size without a first byte": lambda: header("app/x") + nameless("app/y", b"\xff" * 10 + b"\xfe\0"),
    "a long name of many MiB": lambda: header("x", 20 << 20, tarfile.GNUTYPE_LONGNAME) + bytes(20 << 20),
    "long names without end": lambda: (header("x", 512, tarfile.GNUTYPE_LONGNAME) + b"a" * 512) * 20_000,
    "extensions without end": lambda: (header("x", 512, tarfile.XHDTYPE) + b"a" * 512) * 20_000,
    "records for all entries": lambda: header("g", 512, tarfile.XGLTYPE) + bytes(512) + header("app/x"),
    "a record of many MiB": lambda: with_pax(comment="x" * (8 << 20)),
    "another size in a record": lambda: with_pax(size="9999999"),
    "a sparse file in records": lambda: with_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "a deep path": lambda: of_files("app/" + "/".join("d" * 40)),
    "too many directories": lambda: of_files(*(f"app/{number}/a/b/c/x" for number in range(2_600))),
    "a large document": lambda: archive((entry("function.json"), SPEC.to_json() + b" " * (1 << 20))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bundle_is_bounded_before_anything_is_made_of_it(tmp_path: Path, kind: str) -> None:
    bundle = HOSTILE[kind]()
    with pytest.raises(FormatError, match="bundle"):
        spec_of(bundle)
    if kind != "a large document":  # which only who reads it is harmed by
        with pytest.raises(FormatError, match="bundle"):
            BundleCache(tmp_path).add(bundle)
        assert list(tmp_path.iterdir()) == []


def test_what_may_be_in_a_bundle_is_taken() -> None:
    files = {f"app/{'d/' * 20}{'n' * 100}{number}": b"" for number in range(100)}
    assert spec_of(packed(SPEC, {**files, "app/\xe4": b"", "app/x": bytes(48 << 20)}).bundle) == SPEC


def test_a_bundle_that_many_wait_for_is_fetched_once(tmp_path: Path) -> None:
    fetched = list[int]()

    def fetch() -> bytes:
        fetched.append(1)
        return packed(SPEC, FILES).bundle

    with contextlib.closing(hosting_nothing(tmp_path)) as host, ThreadPoolExecutor(16) as callers:
        found = set(callers.map(lambda _: host.deployed_function("v1", fetch).image.key, range(16)))
    assert found == {key_of(packed(SPEC, FILES).bundle)}
    assert fetched == [1]


def test_a_disk_that_takes_no_bundle_leaves_the_call_to_others(tmp_path: Path) -> None:
    with contextlib.closing(hosting_nothing(tmp_path / "gone")) as host:
        shutil.rmtree(tmp_path / "gone")
        with pytest.raises(FunctionsUnavailable, match="cannot be unpacked: No such file"):
            host.deployed_function("v1", lambda: packed(SPEC, FILES).bundle)


@given(st.binary(max_size=2_000))
def test_garbage_is_no_bundle(garbage: bytes) -> None:
    with pytest.raises(FormatError):
        spec_of(garbage)


@given(st.integers(0, 10_239), st.binary(min_size=1, max_size=8))
def test_a_damaged_bundle_is_refused_or_read_as_what_it_says(at: int, noise: bytes) -> None:
    bundle = bytearray(packed(SPEC, FILES).bundle)
    bundle[at : at + len(noise)] = noise
    with contextlib.suppress(StorageError):  # of the family, whatever was damaged
        spec_of(bytes(bundle))


@pytest.mark.parametrize(
    "spec",
    [
        FunctionSpec(name="", entry="a:b"),
        FunctionSpec(name="a b", entry="a:b"),
        FunctionSpec(name="../x", entry="a:b"),
        FunctionSpec(name="x" * 65, entry="a:b"),
        FunctionSpec(name="f", entry="a"),
        FunctionSpec(name="f", entry="a:b", concurrency=0),
        FunctionSpec(name="f", entry="a:b", queue=-1),
        FunctionSpec(name="f", entry="a:b", cache_ttl_s=float("nan")),
        FunctionSpec(name="f", entry="a:b", limits=Limits(memory_bytes=0)),
        FunctionSpec(name="f", entry="a:b", limits=Limits(memory_bytes=1 << 50)),
        FunctionSpec(name="f", entry="a:b", limits=Limits(cpu_s=float("inf"))),
    ],
)
def test_what_is_out_of_bounds_is_refused(spec: FunctionSpec) -> None:
    with pytest.raises(InvalidArgument):
        spec.checked()


def test_limits_as_the_command_line_has_them() -> None:
    assert limits_from_text("") == Limits()
    told = limits_from_text("memory=128MiB, cpu=2.5s,wall=60,threads=4,disk=1g,files=9,output=1k,result=2M")
    assert told == Limits(128 << 20, 2.5, 60.0, 4, 1 << 30, 9, 1 << 10, 2 << 20)
    assert limits_from_text("memory=2MB,disk=512B,output=65536") == Limits(
        memory_bytes=2_000_000, disk_bytes=512, output_bytes=65536
    )
    with pytest.raises(InvalidArgument, match="'memory=512' has no unit: write memory=512MiB"):
        limits_from_text("memory=512")
    for bad in ("memory", "memory=much", "memory=1parsec", "speed=9", "cpu=1MiB", "memory=-1"):
        with pytest.raises(InvalidArgument, match="limit"):
            limits_from_text(bad)


def test_a_function_without_what_is_new_has_the_document_of_ever() -> None:
    plain = FunctionSpec(name="f", entry="m:f")
    assert set(json.loads(plain.to_json())) == {
        *("name", "entry", "idempotent", "cache_ttl_s", "concurrency", "queue", "limits", "requirements"),
        *("own_modules", "python", "format"),
    }
    full = FunctionSpec(
        "f", "m:f", config={"k": "v"}, isolation="user", process_calls=5, process_s=1.5, needs={"gpu": "none"}
    )
    assert FunctionSpec.from_json(full.to_json()) == full
    assert FunctionSpec.from_json(plain.to_json()) == plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"isolation": "none"},
        {"process_calls": 0},
        {"process_s": 0.0},
        {"needs": {"gpu": "a b"}},
        {"config": {"key": "x" * 70_000}},
    ],
)
def test_options_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        FunctionSpec(name="f", entry="m:f", **wrong).checked()
