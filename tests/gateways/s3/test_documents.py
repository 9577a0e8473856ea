"""XML that is sent and received."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskworker.gateways.s3.documents import DOCUMENT_BYTES_MAX, needed, parsed, rendered, text_of, texts_of
from taskworker.gateways.s3.errors import S3Error


def refused(data: bytes, root: str = "A") -> str:
    with pytest.raises(S3Error) as raised:
        parsed(data, root)
    return raised.value.code


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")))
def test_texts_come_back_as_they_were(text: str) -> None:
    assert text_of(parsed(rendered(("A", [("B", text)])), "A"), "B") == text


def test_documents_are_as_others_read_them() -> None:
    data = rendered(("A", [("B", "<&>"), ("C", True), ("D", 5), ("E", [("F", "x"), ("F", "y")])]))
    root = ET.fromstring(data)
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    assert [(one.tag, one.text) for one in root] == [
        (f"{space}B", "<&>"),
        (f"{space}C", "true"),
        (f"{space}D", "5"),
        (f"{space}E", None),
    ]
    assert [*texts_of(parsed(data, "A").find("E"), "F")] == ["x", "y"]  # type: ignore[arg-type]


def test_control_characters_are_written_as_references() -> None:
    assert b"<A>a&#x1;b&#13;</A>" in rendered(("A", "a\x01b\r"), namespace=False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<A>",
        b"<B/>",
        b"\x00",
        b"<A/><A/>",
        b'<?xml version="1.0" encoding="no-such"?><A/>',
        b'<!DOCTYPE A [<!ENTITY a "b">]><A>&a;</A>',
        b'<!DOCTYPE A SYSTEM "file:///etc/passwd"><A/>',
        b'<!DOCTYPE A [<!ENTITY a SYSTEM "file:///etc/passwd">]><A>&a;</A>',
        b"<!DOCTYPE A><A/>",
        b"<A>&undefined;</A>",
        b"<A>" + b"<B>" * 20 + b"</B>" * 20 + b"</A>",
        b"<A>" + b"<B/>" * 60_001 + b"</A>",
        b"<A>" * 1_000_000,
    ],
)
def test_malformed_and_hostile_documents_are_refused(data: bytes) -> None:
    assert refused(data) == "MalformedXML"


def test_long_documents_are_refused() -> None:
    assert refused(b"<A>" + b" " * DOCUMENT_BYTES_MAX + b"</A>") == "MaxMessageLengthExceeded"


def test_what_is_needed_must_be_there() -> None:
    root = parsed(b"<A><B/></A>", "A")
    assert needed(root, "B") == ""
    with pytest.raises(S3Error, match="lacks C"):
        needed(root, "C")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_parsed(data: bytes) -> None:
    try:
        parsed(data, "A")
    except S3Error as error:
        assert error.code == "MalformedXML"  # noqa: PT017
