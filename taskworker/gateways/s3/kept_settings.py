"""Parts of a bucket's settings as they are kept: whoever may write its owner's files may have written anything."""

from __future__ import annotations

import re
from typing import Any

_REGION = re.compile(r"[!-~]{0,64}")
_ELEMENT = re.compile(r"[A-Za-z]{1,64}")


def region_of(text: str) -> str:
    """The name of a region, which is in headers, too.

    Raises:
        ValueError: it is none.
    """
    if not _REGION.fullmatch(text):
        raise ValueError("no region")
    return text


def elements(kept: Any) -> dict[str, Any]:
    """Elements of a document by name, as they are in JSON; of a name whose content is a list, there are several.

    Raises:
        ValueError: no document has such ones.
    """
    if not isinstance(kept, dict) or not all(map(_ELEMENT.fullmatch, kept)):
        raise ValueError("no elements")
    for content in kept.values():
        for one in content if isinstance(content, list) else (content,):
            if isinstance(one, dict):
                elements(one)
            elif not isinstance(one, str | int):
                raise ValueError("no content of an element")
    return kept


def cors_rule(kept: Any) -> dict[str, Any]:
    """A rule for browsers, likewise.

    Raises:
        ValueError: there are no such rules.
        KeyError: likewise.
    """
    rule = elements(kept)
    texts = [rule["AllowedOrigin"], rule["AllowedMethod"], rule.get("AllowedHeader", []), rule.get("ExposeHeader", [])]
    if not all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in texts):
        raise ValueError("no lists of texts")
    return rule
