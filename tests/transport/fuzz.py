"""Feeds a target with inputs that libFuzzer makes up to reach new code: ``python -m tests.transport.fuzz TARGET``.

Further arguments go to libFuzzer, such as ``-max_total_time=60`` or the file of an input that failed.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["taskworker.transport"]):
    from tests.transport.fuzz_targets import GOOD, TARGETS


def main() -> None:
    """Search until an input breaks a promise, or the time is over."""
    name = sys.argv[1]
    logging.disable()
    with tempfile.TemporaryDirectory() as corpus:
        for number, raw in enumerate(GOOD[name]):
            (Path(corpus) / str(number)).write_bytes(raw)
        atheris.Setup([sys.argv[0], *sys.argv[2:], corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
