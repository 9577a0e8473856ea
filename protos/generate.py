"""Generates Python modules from the .proto files in this directory: ``python protos/generate.py [DIRECTORY]``.

The modules are in the repository, so that using TaskWorker needs no compiler. A test fails if they are
out of date. They are written as ``taskworker/protos/<name>_pb2.py`` and ``_pb2_grpc.py`` with typed stubs
beside them, under DIRECTORY (default: this repository).
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
_SIBLING = re.compile(r"^from taskworker import (\w+_pb2)", re.MULTILINE)
CONTRACTS = (
    "taskworker",
    "store",
    "pool",
    "members",
    "functions",
    "outside",
    "secrets",
    "egress",
    "auth",
    "audit",
    "sharing",
)


def generate(directory: Path) -> list[Path]:
    """Write all modules under ``directory / "taskworker/protos"`` and return their paths.

    Raises:
        RuntimeError: the protocol buffer compiler refused a contract.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types

    # The virtual path makes the name in the process-wide pool of descriptors start with "taskworker/", which no
    # other project's files can be mistaken for. The compiler derives the place of the modules from the same path.
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-Itaskworker={PROTOS}",
            f"--python_out={scratch}",
            f"--grpc_python_out={scratch}",
            f"--mypy_out=quiet:{scratch}",
            f"--mypy_grpc_out=quiet:{scratch}",
            *(f"taskworker/{name}.proto" for name in CONTRACTS),
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError("the protocol buffer compiler failed; its output is above")
        package = directory / "taskworker" / "protos"
        package.mkdir(parents=True, exist_ok=True)
        return [_moved(file, package) for file in sorted((Path(scratch) / "taskworker").iterdir())]


def _moved(file: Path, package: Path) -> Path:
    """Write one module into the package, importing its siblings from there."""
    text = re.sub(
        r"^from taskworker import (\w+_pb2)", r"from taskworker.protos import \1", file.read_text(), flags=re.M
    )
    target = package / file.name
    target.write_text(text)
    return target


def main() -> None:
    """Generate into the directory given on the command line."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent
    for path in generate(directory):
        print(path)


if __name__ == "__main__":
    main()
