"""The base of a worker, from which the processes of all functions are forked. It runs trusted code only.

It sees all bundles, and has a descriptor of the host's ``/proc`` for the id maps of new user namespaces. Both are
hidden before any user code runs. All functions would inherit what the base is told about one of them; so it is only
told to fork, and the fork is told the rest.

The base consists of two processes. The second one, forked from the first, has more modules loaded, for functions that
use them. Modules that a zygote has loaded cost each of its calls time even if they are not used, as their memory is
mapped for each call and released again.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from taskworker.sandbox.inside import call, identity, init, kernel, locks, zygote

LEAN = (
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "operator",
    "os",
    "pathlib",
    "re",
    "string",
    "sys",
    "threading",
    "time",
    "traceback",
    "typing",
)
"""Modules loaded for every function. Only a few, as everything loaded has to be mapped or copied for each call."""
COMPLETE = (
    "asyncio",
    "base64",
    "cloudpickle",
    "csv",
    "datetime",
    "decimal",
    "fractions",
    "hashlib",
    "heapq",
    "hmac",
    "importlib.resources",  # zoneinfo finds its data by it
    "pydantic",
    "random",
    "statistics",
    "tempfile",
    "textwrap",
    "uuid",
    "zoneinfo",
    "taskworker.sandbox.inside.validation",
)
"""Further modules that functions use most. They are loaded once, and all functions that use them share the memory."""
DEAR = frozenset(
    {
        *("asyncio", "cloudpickle", "pydantic", "pydantic_core", "tempfile"),
        # Their types occur in results that pydantic writes.
        *("datetime", "decimal", "fractions", "statistics", "uuid", "zoneinfo"),
    }
)
"""Modules of `COMPLETE`, and some that they import, that are expensive to load: better inherited than loaded again."""
HANDED_DOWN = ("libpython", "libc.so")
"""Beginnings of the names of files whose code all calls run, spread over the whole file."""
PROGRAM = "taskworker.sandbox.inside.program"
UID = 1000
"""User and group id of every function, in its own namespace."""


def main() -> None:
    """Start functions until the host hangs up, in two processes: the lean and the complete one."""
    lean, complete, proc = (int(argument) for argument in sys.argv[1:4])
    os.environ.clear()
    signal.signal(signal.SIGCHLD, _reap)
    _load(LEAN)
    locks.install()
    if importlib.util.find_spec(PROGRAM) is not None:
        call.rehearse(importlib.import_module(PROGRAM))
    if os.fork() == 0:
        os.close(lean)
        _load(COMPLETE)
        _use_pydantic(sys.modules["pydantic"])
        _serve(complete, proc)
    os.close(complete)
    _serve(lean, proc)


def _load(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)


def _serve(connection: int, proc: int) -> NoReturn:
    control = socket.socket(fileno=connection)
    gc.collect()
    gc.freeze()
    kernel.join_pages(proc)
    kernel.hand_down_pages(proc, HANDED_DOWN)
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, len(init.START), init.DESCRIPTORS)
        if not message:
            sys.exit()
        try:
            if len(descriptors) < init.DESCRIPTORS:
                raise OSError(errno.EMFILE, "the base has no descriptors left")
            _start_function(list(descriptors), proc)
        except OSError as error:
            _tell_not_started(descriptors, error)
        for descriptor in descriptors:
            os.close(descriptor)


def _use_pydantic(pydantic: Any) -> None:
    """Make a model and validate with it, as much of pydantic is only loaded at its first use."""
    datetime = sys.modules["datetime"]
    model = pydantic.create_model("Model", x=(int, ...), when=(datetime.datetime | None, None), y=(list[str], []))
    model.model_validate_json('{"x": "1"}').model_dump_json()
    pydantic.TypeAdapter(dict[str, int]).validate_python({"a": "1"})
    pydantic.validate_call(lambda x: x)(1)


def _start_function(descriptors: list[int], proc: int) -> None:
    """Fork a process that enters new namespaces and forks their first process, the function's init."""
    if os.fork() != 0:
        return
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kernel.close_all_but({proc, *descriptors})
        start = init.Start(**json.loads(os.read(descriptors[0], init.MESSAGE_BYTES_MAX)))
        if start.uid:
            identity.become(start.uid)
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(init.NAMESPACES)
        kernel.map_own_ids(proc, UID, uid, gid)
        if os.fork() == 0:
            init.main(start, descriptors, proc, zygote.main)
    except BaseException as error:  # the last resort of a process that has no caller
        sys.stderr.write(f"a function could not be started: {type(error).__name__}: {error}\n")
        if isinstance(error, OSError):
            _tell_not_started(descriptors, error)
        os._exit(1)
    os._exit(0)


def _tell_not_started(descriptors: list[int], error: OSError) -> None:
    """Report a failed start to the host, on the socket meant for the function's init."""
    if not descriptors:
        return
    own = socket.socket(fileno=descriptors[0])
    with contextlib.suppress(OSError):  # with unread messages, the host would get ECONNRESET of the report
        while own.recv(init.MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT):
            pass
    with contextlib.suppress(OSError):  # the host has hung up
        own.send(init.NOT_STARTED + f"{error.errno} {error}".encode(), socket.MSG_NOSIGNAL)
    own.detach()  # the caller closes the descriptor


def _reap(_number: int, _frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
