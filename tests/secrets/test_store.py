"""What operators do with secrets, and what functions get of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.catalog import LmdbCatalog
from storage.errors import InvalidArgument, PermissionDenied
from taskworker.calls.call import Call
from taskworker.errors import SecretDamaged, SecretExists, SecretNotFound, SecretsUnavailable
from taskworker.outbound.secrets.calls import CallSecrets, RequestSecrets
from taskworker.outbound.secrets.master_key import KeyFile
from taskworker.outbound.secrets.sealing import Grant
from taskworker.outbound.secrets.store import VALUE_BYTES_MAX, Secrets
from taskworker.outbound.secrets.uses import LastUses
from taskworker.outbound.secrets.vault import DOCUMENT
from tests.secrets.kept import secrets_in


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[LmdbCatalog]:
    catalog = LmdbCatalog(tmp_path / "catalog")
    yield catalog
    catalog.close()


@pytest.fixture
def kept(tmp_path: Path, catalog: LmdbCatalog) -> Secrets:
    clock = itertools.count(1_000, 1_000)
    return Secrets(catalog, KeyFile(tmp_path / "master.key"), lambda: next(clock))


def test_a_secret_s_life(kept: Secrets, tmp_path: Path, catalog: LmdbCatalog) -> None:
    assert kept.list() == []
    kept.set("api_key", "s3cret")
    kept.grant("api_key", "report")
    assert kept.get("report", "api_key") == "s3cret"
    view = kept.rotate("api_key", "n3w")
    assert (view.version, view.created_ms, view.grants) == (2, 1_000, (Grant("report"),))
    assert view.changed_ms > view.created_ms
    assert kept.get("report", "api_key") == "n3w"
    assert kept.list()[0].last_used_ms is not None
    kept.close()
    with secrets_in(tmp_path, catalog=catalog) as again:
        assert again.get("report", "api_key") == "n3w"
        assert again.list()[0].created_ms == 1_000
    kept.revoke("api_key", "report")
    with pytest.raises(PermissionDenied):
        kept.get("report", "api_key")
    kept.remove("api_key")
    assert kept.list() == []
    assert catalog.document(DOCUMENT) == b""


def test_last_uses_are_written_once_a_minute(catalog: LmdbCatalog) -> None:
    now_s = [0.0]
    uses = LastUses(catalog, lambda: int(now_s[0] * 1000), lambda: now_s[0])
    for now_s[0], written in ((59.0, None), (60.0, 60_000), (61.0, 60_000), (119.0, 60_000), (120.0, 120_000)):
        uses.note("used")
        assert LastUses(catalog, lambda: 0).of("used") == written
    assert uses.of("used") == 120_000


def test_the_last_use_is_kept(kept: Secrets, tmp_path: Path, catalog: LmdbCatalog) -> None:
    kept.set("used", "value")
    kept.set("unused", "value")
    kept.grant("used", "f")
    kept.fill("f", "{{secret:used}}")
    kept.close()
    with secrets_in(tmp_path, catalog=catalog) as again:
        assert [(one.name, one.last_used_ms is None) for one in again.list()] == [("unused", True), ("used", False)]


def test_what_does_not_fit_is_refused(kept: Secrets) -> None:
    kept.set("there", "value")
    with pytest.raises(SecretExists, match="secret rotate there"):
        kept.set("there", "other")
    for call in (
        lambda: kept.rotate("absent", "value"),
        lambda: kept.remove("absent"),
        lambda: kept.grant("absent", "f"),
        lambda: kept.revoke("absent", "f"),
    ):
        with pytest.raises(SecretNotFound, match="absent"):
            call()
    for name in ("", "a b", "ä", "a/b", "a" * 65, "-a", "a\n", "{{secret:a}}"):
        with pytest.raises(InvalidArgument, match="secret name"):
            kept.set(name, "value")
    for value in ("", "x" * (VALUE_BYTES_MAX + 1), "ü" * (VALUE_BYTES_MAX // 2 + 1), "\ud800"):
        with pytest.raises(InvalidArgument) as refused:
            kept.set("new", value)
        assert not value or value not in str(refused.value)
    with pytest.raises(InvalidArgument, match="function name"):
        kept.grant("there", "no function")
    with pytest.raises(InvalidArgument, match="not granted"):
        kept.revoke("there", "f")
    for host in ("", "https://a.example", "a.example:443", "a/b", "a..b", "*", "*a.example", "münchen.example"):
        with pytest.raises(InvalidArgument, match="host"):
            kept.grant("there", "f", [host])
    assert [(one.name, one.version, one.grants) for one in kept.list()] == [("there", 1, ())]
    kept.set("full", "ü" * (VALUE_BYTES_MAX // 2))


def test_a_refusal_does_not_tell_whether_there_is_such_a_secret(kept: Secrets) -> None:
    kept.set("there", "value")
    kept.grant("there", "other")
    kept.set("bound", "value")
    kept.grant("bound", "other", ["api.example.com"])

    def refusal(function: str, name: str) -> tuple[str, str]:
        texts = []
        for wanted in (name, f"a {{{{secret:{name}}}}}"):
            with pytest.raises(PermissionDenied) as refused:
                kept.get(function, name) if wanted == name else kept.fill(function, wanted)
            texts.append(str(refused.value).replace(name, "NAME"))
        return texts[0], texts[1]

    assert refusal("f", "there") == refusal("f", "bound") == refusal("f", "absent")
    assert "`taskworker secret grant NAME f`" in refusal("f", "absent")[0]
    kept.remove("there")
    assert refusal("other", "there") == refusal("other", "absent")


def test_text_is_filled_in_once(kept: Secrets) -> None:
    kept.set("a", "{{secret:b}}\\1")
    kept.set("b", "second")
    for name in ("a", "b"):
        kept.grant(name, "f")
    given: list[str] = []
    text = "{{secret:a}} {{secret:b}}{{secret:b}} {{other:a}} {secret:a}"
    filled = kept.fill("f", text, host="anywhere.example", given=given.append)
    assert filled == "{{secret:b}}\\1 secondsecond {{other:a}} {secret:a}"
    assert given == ["{{secret:b}}\\1", "second", "second"]
    assert kept.fill("g", "nothing in it") == "nothing in it"
    with pytest.raises(PermissionDenied):
        kept.fill("g", text)
    for typo in ("", " a", "a b", "-", "a" * 65):
        with pytest.raises(InvalidArgument, match="secret name"):  # not sent as it stands
            kept.fill("f", f"{{{{secret:{typo}}}}}")


def test_a_bound_secret_goes_to_its_hosts_alone_and_is_not_seen(kept: Secrets) -> None:
    kept.set("key", "value")
    kept.grant("key", "f", ["API.example.com.", "*.cdn.example", "[2001:DB8::1]"])
    for host in ("api.example.com", "Api.Example.Com.", "a.cdn.example", "a.b.cdn.example", "2001:db8::1"):
        assert kept.fill("f", "{{secret:key}}", host=host) == "value"
    elsewhere: list[str | None] = [
        "example.com",
        "x.api.example.com",
        "cdn.example",
        "evilcdn.example",
        "x.test",
        "",
        None,
    ]
    for other in (*elsewhere, "api.example.com.evil.test"):
        with pytest.raises(PermissionDenied, match=r"api\.example\.com"):
            kept.fill("f", "{{secret:key}}", host=other)
    with pytest.raises(PermissionDenied, match=r"\{\{secret:key\}\}"):
        kept.get("f", "key")
    kept.grant("key", "f")
    assert kept.get("f", "key") == kept.fill("f", "{{secret:key}}", host="x.test") == "value"


def test_a_call_has_its_own_function_s_secrets(kept: Secrets) -> None:
    kept.set("key", "value")
    kept.grant("key", "f")
    given: list[str] = []
    inner = CallSecrets(kept, Call("g", chain=("f",)), given.append)
    with pytest.raises(PermissionDenied):
        inner.secret("key")
    assert given == []
    assert CallSecrets(kept, Call("f"), given.append).secret("key") == "value"
    assert given == ["value"]


def test_a_request_has_the_secrets_of_its_function_filled_in(kept: Secrets) -> None:
    kept.set("key", "value")
    kept.grant("key", "f", ["a.example"])
    given: list[tuple[str, str]] = []
    requests = RequestSecrets(kept, lambda function, value: given.append((function, value)))
    assert requests.fill("f", "a.example", "Bearer {{secret:key}}") == "Bearer value"
    for function, host in (("f", "b.example"), ("g", "a.example")):
        with pytest.raises(PermissionDenied):
            requests.fill(function, host, "Bearer {{secret:key}}")
    assert given == [("f", "value")]


def test_a_damaged_secret_harms_no_other(kept: Secrets, catalog: LmdbCatalog) -> None:
    for name in ("one", "two"):
        kept.set(name, f"value of {name}")
        kept.grant(name, "f")
    before = catalog.document(DOCUMENT)
    assert before is not None
    tampered = before[:-1] + bytes([before[-1] ^ 1])  # the last record's last byte
    catalog.save_document(DOCUMENT, tampered)
    assert kept.get("f", "one") == "value of one"
    with pytest.raises(SecretDamaged, match="two"):
        kept.get("f", "two")
    with pytest.raises(PermissionDenied):
        kept.get("g", "two")
    assert [(one.name, one.damaged) for one in kept.list()] == [("one", False), ("two", True)]
    for change in (lambda: kept.rotate("two", "new"), lambda: kept.grant("two", "g"), kept.rotate_master, kept.check):
        with pytest.raises(SecretDamaged, match="two"):
            change()
    kept.grant("one", "g")  # the damaged one is kept as it is
    catalog.save_document(DOCUMENT, before)
    assert kept.get("f", "two") == "value of two"
    catalog.save_document(DOCUMENT, tampered)
    kept.remove("two")
    kept.check()
    assert kept.rotate_master().secrets == 1


def test_a_damaged_table_stops_all_and_loses_nothing(kept: Secrets, catalog: LmdbCatalog) -> None:
    kept.set("one", "value")
    kept.grant("one", "f")
    before = catalog.document(DOCUMENT)
    assert before is not None
    at = before.index(b"one")
    for damaged in (before[:at] + b"two" + before[at + 3 :], b"garbage", before[: len(before) // 2]):
        catalog.save_document(DOCUMENT, damaged)
        for call in (kept.list, kept.check, kept.rotate_master, lambda: kept.set("n", "v"), lambda: kept.remove("one")):
            with pytest.raises(SecretDamaged, match="rm --all"):
                call()
        for function in ("f", "g"):  # a function is told neither what nor which
            with pytest.raises(SecretsUnavailable, match="its operator"):
                kept.get(function, "one")
        assert catalog.document(DOCUMENT) == damaged
    catalog.save_document(DOCUMENT, before)
    assert kept.get("f", "one") == "value"
    catalog.save_document(DOCUMENT, b"garbage")
    kept.remove_all()
    assert kept.set("one", "again").version == 1


def test_values_are_in_no_error_repr_log_or_file(
    kept: Secrets, tmp_path: Path, catalog: LmdbCatalog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    value = "planted-b52d1f0e8a"
    said = [repr(kept.set("key", value)), repr(kept.grant("key", "f")), repr(kept.list()), repr(kept)]
    kept.get("f", "key")
    kept.fill("f", "{{secret:key}}")
    with pytest.raises(SecretExists) as refused:
        kept.set("key", value)
    said.append(repr(refused.value))
    kept.rotate_master()
    kept.close()
    said += [record.getMessage() for record in caplog.records]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            said.append(path.read_bytes().decode("latin-1"))
    assert len(said) > 6
    forms = (value, value.encode().hex(), "cGxhbnRlZC1iNTJkMWYwZThh")
    assert not [form for form in forms for one in said if form in one]
