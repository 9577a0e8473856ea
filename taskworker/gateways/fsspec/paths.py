"""Paths: names of files between slashes, as programs that use fsspec write them."""

from __future__ import annotations


def plain(path: str) -> str:
    """A path without slashes at its ends, or two in a row; the root is empty."""
    return "/".join(filter(None, path.split("/"))) if path.startswith("/") or "//" in path else path.rstrip("/")


def has_path(name: str) -> bool:
    """Whether a stored name can be told as a path, or is that of a directory, with one slash at its end."""
    return not name.startswith("/") and "//" not in name


def below(directory: str) -> str:
    """What the names of all files in a directory start with."""
    return f"{directory}/" if directory else ""


def parents(name: str, directory: str) -> list[str]:
    """The directories between ``directory`` and a file in it, the uppermost first."""
    start = len(below(directory))
    found: list[str] = []
    while (end := name.find("/", start)) >= 0:
        found.append(name[:end])
        start = end + 1
    return found
