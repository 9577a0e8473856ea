"""XML as S3 speaks it: what goes out, and what comes in, within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from taskworker.gateways.s3.errors import S3Error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024
"""The longest one that callers need lists 10,000 parts with their checksums, in 3 MiB."""
_ELEMENTS_MAX = 60_000
_DEPTH_MAX = 12

DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'
"""What each document begins with; spaces may follow it."""

Node: TypeAlias = tuple[str, str | int | bool | Sequence["Node"]]
"""An element: its name, maybe with attributes after it, and its text or its children."""

_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("\r"): "&#13;"} | {
    code: f"&#x{code:x};" for code in range(0x20) if chr(code) not in "\t\n\r"
}


def number_in(text: str, name: str, least: int, most: int) -> int:
    """The number that an element has as its text.

    Args:
        text: of the element.
        name: its name.
        least: the smallest number that it may be, 0 or more.
        most: the largest one.

    Raises:
        S3Error: it is no number, or another one.
    """
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or not least <= int(digits) <= most:
        raise S3Error(
            "InvalidArgument", f"{name} must be a number from {least} to {most}", ArgumentName=name, ArgumentValue=text
        )
    return int(digits)


def rendered(root: Node, *, namespace: bool = True) -> bytes:
    """A document with this root."""
    name, content = root
    opening = f'{name} xmlns="{NAMESPACE}"' if namespace else name
    return DECLARATION + f"<{opening}>{_inner(content)}</{name}>".encode("utf-8", "surrogatepass")


def _inner(content: str | int | bool | Sequence[Node]) -> str:
    if isinstance(content, bool):
        return "true" if content else "false"
    if isinstance(content, str | int):
        return str(content).translate(_ESCAPES)
    return "".join(f"<{name}>{_inner(inner)}</{name.partition(' ')[0]}>" for name, inner in content)


def parsed(data: bytes, root: str) -> Element:
    """The root element of a document that a caller sent, with the names of elements freed from namespaces.

    Raises:
        S3Error: it is not well-formed, has a DTD or entities, another root, or is too long, deep or large.
    """
    if len(data) > DOCUMENT_BYTES_MAX:
        raise S3Error("MaxMessageLengthExceeded", f"a document may have at most {DOCUMENT_BYTES_MAX} bytes")
    parser = DefusedXMLParser(target=_Bounded(), forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(data)
        found: Element = parser.close()
    except DefusedXmlException:
        raise S3Error("MalformedXML", "the document has a DTD or entities, which are not allowed") from None
    except (ParseError, ValueError, LookupError):  # the two latter: an encoding that is unknown
        raise S3Error("MalformedXML", "the document is not well-formed XML") from None
    if found.tag != root:
        raise S3Error("MalformedXML", f"the document must be a {root}")
    return found


def text_of(element: Element, name: str) -> str | None:
    """The text of a child element; None if there is none."""
    child = element.find(name)
    return None if child is None else (child.text or "")


def needed(element: Element, name: str) -> str:
    """The text of a child element.

    Raises:
        S3Error: there is none.
    """
    text = text_of(element, name)
    if text is None:
        raise S3Error("MalformedXML", f"the element {element.tag} lacks {name}")
    return text


def texts_of(element: Element, name: str) -> Iterator[str]:
    """The texts of all child elements of this name."""
    for child in element.findall(name):
        yield child.text or ""


class _Bounded:
    """Builds a tree up to a depth and a size."""

    def __init__(self) -> None:
        self._builder = TreeBuilder()
        self._depth = 0
        self._count = 0

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        self._depth += 1
        self._count += 1
        if self._depth > _DEPTH_MAX or self._count > _ELEMENTS_MAX:
            raise S3Error("MalformedXML", f"the document has more than {_DEPTH_MAX} levels or {_ELEMENTS_MAX} elements")
        self._builder.start(tag.rpartition("}")[2], {})

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._builder.end(tag.rpartition("}")[2])

    def data(self, text: str) -> None:
        self._builder.data(text)

    def close(self) -> Element:
        return self._builder.close()
