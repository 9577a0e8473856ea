"""A function that counts lines, words and the commonest words of a text in the store, however long it is."""

from __future__ import annotations

import collections
import io
import re

from taskworker.inside import worker

WORD = re.compile(r"\w+")


def statistics(name: str, commonest: int = 10) -> dict[str, object]:
    """Read the text line by line: only the piece at hand is fetched and held."""
    lines = characters = 0
    words: collections.Counter[str] = collections.Counter()
    with worker.storage.open(name) as file:
        for line in io.TextIOWrapper(file, encoding="utf-8", errors="replace"):
            lines += 1
            characters += len(line)
            words.update(word.lower() for word in WORD.findall(line))
        print(f"{name}: {lines} lines")
    return {
        "lines": lines,
        "characters": characters,
        "words": words.total(),
        "commonest": words.most_common(commonest),
    }
