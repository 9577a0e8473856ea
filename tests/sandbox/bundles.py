"""Bundles for tests: a directory with programs, and images of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from taskworker.sandbox import FunctionImage, Keep, Limits, SandboxCall, SandboxHost

HERE = Path(__file__).parent
ECHO = """
def prepare(document):
    pass

def run(request, channel):
    return request
"""


def program(
    bundles: Path, source: str, *, limits: Limits | None = None, document: bytes = b"", keep: Keep | None = None
) -> FunctionImage:
    """Write a program with ``prepare`` and ``run`` as a bundle of its own."""
    key = hashlib.sha256(source.encode() + document + repr((limits, keep)).encode()).hexdigest()[:16]
    root = bundles / key
    if not root.exists():
        root.mkdir(parents=True)
        (root / "tested_program.py").write_text(source)
    return FunctionImage(key, root, b"program:tested_program\n" + document, limits or Limits(), keep)


def corpus(bundles: Path, document: bytes, limits: Limits) -> FunctionImage:
    """Bundle the attacks."""
    root = bundles / "corpus"
    shutil.copytree(HERE / "attacks", root / "tests" / "sandbox" / "attacks")
    return FunctionImage("corpus", root, b"program:tests.sandbox.attacks.corpus\n" + document, limits)


def begin(
    host: SandboxHost,
    image: FunctionImage,
    request: bytes = b"",
    *,
    timeout_s: float | None = None,
    answer: Callable[[bytes], bytes] = bytes,
    output: Callable[[str, bytes], None] = lambda _name, _data: None,
    item: Callable[[bytes, Callable[[], bool]], None] | None = None,
    check: Callable[[bytes], object] = lambda _result: None,
    owner: str = "",
    stopped: Callable[[], object] = lambda: None,
) -> SandboxCall:
    """Begin a call; asks are echoed and output is dropped unless told otherwise."""
    return host.begin(
        image,
        request,
        timeout_s=timeout_s,
        answer=lambda ask, _: answer(ask),
        output=output,
        item=item,
        check=check,
        owner=owner,
        stopped=stopped,
    )
