"""What a page of the documentation has its reader do, step by step.

A comment on the line before a block says what the text around it tells a reader: ``not run: REASON``,
``in background: NAME``, ``until it matches``, ``exit code: N``. A comment of its own stands for what has no block:
``stop: NAME`` for Ctrl-C, ``kill and lose PATH: NAME`` for a process that dies and takes a directory with it, ``off:
NAME, ...`` for machines that are switched off. On pages for several machines, comments begin with ``on MACHINE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_COMMENT = re.compile(r"<!-- (.*) -->")
_FENCE = re.compile(r'```(\w+)(?: title="([^"]+)")?')
_ALONE = ("stop: ", "kill and lose ", "off: ")


@dataclass(frozen=True, slots=True)
class Step:
    """A block, or a comment of its own.

    Attributes:
        place: where it is, for people.
        remark: the comment; empty if there is none.
        language: of the block; empty for a comment of its own.
        title: the name of the file that the block shows.
        lines: of the block.
    """

    place: str
    remark: str
    language: str = ""
    title: str = ""
    lines: tuple[str, ...] = ()

    @property
    def is_run(self) -> bool:
        return not self.remark.startswith("not run: ")

    @property
    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command of a console block with the lines that it prints."""
        command, shown = "", list[str]()
        for line in (*self.lines, "$ "):
            if not line.startswith("$ "):
                shown.append(line)
                continue
            if command:
                yield command, shown
            command, shown = line.removeprefix("$ "), []


def steps(page: str) -> Iterator[Step]:
    """The steps of a page of ``docs/``, in its order."""
    lines = iter(enumerate((DOCS / page).read_text(encoding="utf-8").splitlines(), start=1))
    remark = ""
    for number, line in lines:
        place = f"docs/{page}:{number}"
        if comment := _COMMENT.fullmatch(line):
            if comment.group(1).startswith(_ALONE):
                yield Step(place, comment.group(1))
            else:
                remark = comment.group(1)
        elif line.startswith("```"):
            fence = _FENCE.fullmatch(line)
            assert fence is not None, f"{place}: a block without a language"
            block = []
            for _, inner in lines:
                if inner == "```":
                    break
                block.append(inner)
            yield Step(place, remark, fence.group(1), fence.group(2) or "", tuple(block))
            remark = ""
