"""Words that must be nowhere in plain text, and where they are found."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.cluster.hosts.following import PAGE, Following
from tests.docs.pages import DOCS

CONTENT = "planted-plaintext-"
"""What the content of the user's file is made of."""
USER_NAME = "anna.schmidt"
_ON_THE_PAGE = {
    "the file's content": CONTENT,
    "the file's name": "accounts-2026",
    "the version's note": "before the audit",
    "the user": USER_NAME,
}


def planted(following: Following) -> dict[str, bytes]:
    """What those who follow the page store, call themselves and show to prove who they are."""
    page = (DOCS / PAGE).read_text()
    assert all(word == CONTENT or word in page for word in _ON_THE_PAGE.values())
    words = dict(_ON_THE_PAGE)
    for worker, learned in following.learned.items():
        for shown, other in learned.items():
            if shown.startswith("tw1."):
                words[f"the join token of {worker}"] = other.rpartition(".")[2]
            elif shown.startswith("twu1."):
                words["the user's token"] = re.sub("^twu1[.]", "", other)
    assert len(words) == len(_ON_THE_PAGE) + 7, words
    return {what: word.encode() for what, word in words.items()}


def found_in(place: Path, words: Mapping[str, bytes]) -> list[str]:
    """Which of the words are in a file, or in a directory's files and their names, and where."""
    return [f"{what} in {path}" for path in _files(place) for what in _found(path, words)]


def _files(place: Path) -> Iterator[Path]:
    yield from (path for path in sorted(place.rglob("*")) if path.is_file()) if place.is_dir() else (place,)


def _found(path: Path, words: Mapping[str, bytes]) -> Iterator[str]:
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for what, word in words.items():
            if content.find(word) >= 0 or word in str(path).encode():
                yield what
