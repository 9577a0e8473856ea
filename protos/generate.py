"""Makes the Python modules of the contracts in this folder: ``python protos/generate.py [DIRECTORY]``.

The modules are checked in, so that using TaskWorker needs no compiler; a test tells when they are
stale. They are written as ``taskworker/<name>_pb2.py`` and ``_pb2_grpc.py`` with typed stubs beside
them, under DIRECTORY (default: this repository).
"""

from __future__ import annotations

import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
CONTRACTS = ("taskworker", "store", "pool", "functions", "outside", "secrets", "egress")


def generate(directory: Path) -> list[Path]:
    """Writes all modules under ``directory / "taskworker"`` and returns their paths.

    Raises:
        RuntimeError: the protocol buffer compiler refused a contract.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types

    # The virtual path makes both the import of the modules and the name in the process-wide pool of
    # descriptors start with "taskworker/", which no other project's files can be mistaken for.
    arguments = [
        "protoc",
        f"-Itaskworker={PROTOS}",
        f"--python_out={directory}",
        f"--grpc_python_out={directory}",
        f"--mypy_out=quiet:{directory}",
        f"--mypy_grpc_out=quiet:{directory}",
        *(f"taskworker/{name}.proto" for name in CONTRACTS),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("the protocol buffer compiler failed; what it said is above")
    suffixes = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    return [directory / "taskworker" / f"{name}{suffix}" for name in CONTRACTS for suffix in suffixes]


def main() -> None:
    """Generate into the directory given on the command line."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent
    for path in generate(directory):
        print(path)


if __name__ == "__main__":
    main()
