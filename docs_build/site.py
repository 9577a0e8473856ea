"""The hook by which MkDocs has parts of pages made from the code.

A page names a part in a comment of its own line, as ``<!-- generated: error-table -->``; words after the part's name
are given to what makes it. A name that is not known ends the build.
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
    """The page with all its parts; MkDocs calls this for each page."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])  # beside a page of no group there is nothing to navigate to
    return filled(markdown, page.file.src_uri)


def on_page_content(html: str, *, page: _Page, config: object, files: object) -> str:
    """The page without the roles of reStructuredText that docstrings have; MkDocs calls this for each page.

    Raises:
        ValueError: it describes a class without some of its public methods.
    """
    if lacking := api.undescribed(html):
        raise ValueError(f"{page.file.src_uri} describes classes without {', '.join(lacking)}")
    return _ROLE.sub("", html)


def filled(markdown: str, uri: str) -> str:
    """The page ``uri`` with all its parts.

    Raises:
        ValueError: it names a part that there is not.
    """

    def part(place: re.Match[str]) -> str:
        name, words = place.group(1), place.group(2).split()
        if name == "included":
            return links.included(words[0], uri)
        if name not in PARTS:
            raise ValueError(f"{uri}: there is no generated part {name!r}; there are {', '.join(PARTS)}")
        return PARTS[name](*words)

    return PLACE.sub(part, links.relinked(markdown, uri))
