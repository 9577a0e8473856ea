"""The MkDocs hook that fills marked places in pages with text generated from the code.

A page names a part in a comment on a line of its own, such as ``<!-- generated: error-table -->``. Words after the name
are arguments of the function that makes the part. An unknown name makes the build fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from docs_build import api, commands, errors, limits, links

PLACE = re.compile(r"^<!-- generated: (\S+) ?(.*?) -->$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<code>)")
PARTS: Mapping[str, Callable[..., str]] = {
    "commands": commands.overview,
    "commands-of": lambda *words: commands.sections(" ".join(words)),
    "options-of": lambda *words: commands.options_of(" ".join(words)),
    "common-options": commands.common_options,
    "error-table": errors.error_table,
    "exit-code-table": errors.exit_code_table,
    "storage-limits": limits.storage_table,
    "message-limits": limits.message_table,
    "call-limits": limits.call_table,
    "function-limits": limits.function_table,
    "api": api.names,
    "api-errors": api.errors,
    "api-rest": api.rest,
    "api-inside": api.objects_inside,
    "file": links.shown,
}


class _File(Protocol):
    src_uri: str


class _Page(Protocol):
    file: _File
    meta: dict[str, object]
    parent: object


def on_page_markdown(markdown: str, *, page: _Page, config: object, files: object) -> str:
    """The page with all its parts filled in; MkDocs calls this for each page."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])  # a page outside of all groups has none to list beside it
    return filled(markdown, page.file.src_uri)


def on_page_content(html: str, *, page: _Page, config: object, files: object) -> str:
    """The page without the reStructuredText roles of docstrings; MkDocs calls this for each page.

    Raises:
        ValueError: it describes a class, but not all of its public methods.
    """
    if lacking := api.undescribed(html):
        raise ValueError(f"{page.file.src_uri} describes classes without {', '.join(lacking)}")
    return _ROLE.sub("", html)


def filled(markdown: str, uri: str) -> str:
    """The page ``uri`` with all its parts filled in.

    Raises:
        ValueError: it names an unknown part.
    """

    def part(place: re.Match[str]) -> str:
        name, words = place.group(1), place.group(2).split()
        if name == "included":
            return links.included(words[0], uri)
        if name not in PARTS:
            raise ValueError(f"{uri}: there is no generated part {name!r}; there are {', '.join(PARTS)}")
        return PARTS[name](*words)

    return PLACE.sub(part, links.relinked(markdown, uri))
