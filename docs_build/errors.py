"""Generates the tables of errors: types, gRPC status codes, exit codes."""

from __future__ import annotations

import inspect

import storage.errors
import taskworker.errors
from docs_build.markdown import code, escaped, table
from taskworker.cli.exits import ExitCode, exit_code_of
from taskworker.rpc import status


def error_types() -> list[type[storage.errors.StorageError]]:
    """All error types of ``storage`` and ``taskworker``, in the order in which they are defined."""
    return [
        each
        for module in (storage.errors, taskworker.errors)
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, storage.errors.StorageError)
        and each.__module__ == module.__name__
    ]


def api_name(each: type[storage.errors.StorageError]) -> str:
    """The name under which programs import an error type."""
    home = "storage" if each.__module__ == storage.errors.__name__ else taskworker.errors.__name__
    return f"{home}.{each.__name__}"


def error_table() -> str:
    """Every error type with its meaning, its gRPC status code, and the exit code of a command that fails with it."""
    rows = []
    for each in error_types():
        meaning = (inspect.getdoc(each) or "").split("\n\n")[0]
        name = f"[{code(each.__name__)}](python/errors.md#{api_name(each)})"
        rows.append([name, escaped(meaning), code(grpc_code(each)), str(exit_code(each))])
    return table(["error", "meaning", "gRPC status code", "exit code"], rows)


def grpc_code(each: type[storage.errors.StorageError]) -> str:
    """The name of the status code that a call fails with."""
    kind = status.kind_of(each.__new__(each))
    return status.encode(status.error_of(kind, "")).code.name


def exit_code(each: type[storage.errors.StorageError]) -> int:
    """The exit code of a command that fails with this error."""
    return int(exit_code_of(each.__new__(each)))


def exit_code_table() -> str:
    """All exit codes that the program sets itself."""
    rows = [[str(int(one)), code(one.name), _EXIT_MEANINGS[one]] for one in ExitCode]
    rows += [["130", "", "interrupted (Ctrl-C, SIGINT)"], ["143", "", "terminated (SIGTERM)"]]
    return table(["exit code", "name", "meaning"], sorted(rows, key=lambda row: int(row[0])))


_EXIT_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed, for a reason without an exit code of its own; `scrub`: something is damaged",
    ExitCode.USAGE: "wrong usage: an unknown option, or a value that is not allowed",
    ExitCode.NOT_FOUND: "a file, version, function, secret or name does not exist",
    ExitCode.CONFLICT: "someone else changed the file, or both sides of a sync changed",
    ExitCode.DATA_LOSS: "too few intact shards are left",
    ExitCode.UNAVAILABLE: "no server answers, workers or volumes are away, the store is in use, or the time is up",
    ExitCode.PIPE_CLOSED: "the program that read the output stopped reading",
}
