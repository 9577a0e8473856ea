"""Wheels for tests."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path


def made_wheel(
    directory: Path, name: str, files: dict[str, str], tag: str = "py3-none-any", *, listed: Sequence[str] = ()
) -> Path:
    """A wheel made by hand, as no index is asked in tests; ``listed`` are paths that its RECORD has besides."""
    path = directory / f"{name}-1.2-{tag}.whl"
    info = f"{name}-1.2.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{file},,\n" for file in (*contents, *listed, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path
