"""A call's scratch files are its own: not because nobody knows their place, but because nobody else has that place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from taskworker.sandbox import FunctionImage, Limits, SandboxCall, SandboxHost
from tests.sandbox.bundles import begin, program

USERS = """
import os, pathlib, tempfile

def prepare(document):
    pass

def everything():
    return [os.path.join(place, name) for place, _, names in os.walk("/") for name in names]

def run(request, channel):
    if request == b"work":
        found = os.listdir("/tmp")
        pathlib.Path("/tmp/private.txt").write_text("of ann")
        channel.ask(b"written")
        return repr((found, pathlib.Path("private.txt").read_text(), os.listdir("/tmp"))).encode()
    if request == b"spy":
        pathlib.Path("/tmp/private.txt").write_text("of eve")
        pathlib.Path("/tmp/planted.txt").write_text("of eve")
        return repr([path for path in everything() if "private" in path]).encode()
    names = os.getcwd(), tempfile.gettempdir(), os.environ["HOME"], os.path.expanduser("~")
    return repr((os.listdir("/tmp"), *names)).encode()
"""


@pytest.fixture(scope="module")
def users(host: SandboxHost, bundles: Path) -> FunctionImage:
    return program(bundles, USERS, limits=Limits(disk_bytes=1 << 20))


def test_calls_have_the_same_place_and_not_each_other_s_files(host: SandboxHost, users: FunctionImage) -> None:
    spied: list[object] = []

    def meanwhile(_ask: bytes) -> bytes:
        spied.append(ast.literal_eval(begin(host, users, b"spy").result().decode()))
        return b""

    def result(call: SandboxCall) -> object:
        return ast.literal_eval(call.result().decode())

    waiting = begin(host, users, b"look")
    assert result(begin(host, users, b"work", answer=meanwhile)) == ([], "of ann", ["private.txt"])
    assert spied == [["/tmp/private.txt"]]  # its own
    for call in (waiting, *(begin(host, users, b"look") for _ in range(10))):
        assert result(call) == ([], "/tmp", "/tmp", "/tmp", "/tmp")
