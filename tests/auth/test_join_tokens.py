"""Tokens with which workers join, each once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InvalidArgument
from taskworker.auth.join_tokens import Admission, JoinToken, JoinTokens
from taskworker.errors import WorkerRefused

AUTHORITY = "0a" * 32
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60)


class Documents:
    """Documents in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def document(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save_document(self, name: str, raw: bytes) -> None:
        self.kept[name] = raw


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def documents() -> Documents:
    return Documents()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(documents: Documents, clock: Clock) -> JoinTokens:
    return JoinTokens(documents, clock)


@given(worker=names, secret=st.text("abcXYZ019-_", min_size=1, max_size=50))
def test_a_token_survives_its_text(worker: str, secret: str) -> None:
    token = JoinToken(AUTHORITY, worker, secret)
    assert token.text.isascii()
    assert token.text.startswith(f"tw1.{AUTHORITY}.")
    assert JoinToken.parse(f" {token.text}\n") == token


@given(text=st.text() | st.builds("tw1.{}.{}.{}".format, st.text(), st.text(), st.text()))
def test_other_texts_are_refused_without_repeating_them(text: str) -> None:
    try:
        token = JoinToken.parse(text)
    except InvalidArgument as error:
        told = str(error)
        repeated = len(text) >= 20 and text in told
    else:
        repeated = len(token.authority) != 64
    assert not repeated


def test_a_token_is_used_once_by_one_key(tokens: JoinTokens) -> None:
    admission = Admission("w1", zone="rack 1", owner="ann", capacity_max=5)
    token = tokens.create(AUTHORITY, admission)
    for worker, secret in (("w2", token.secret), ("w1", "x" * 43), ("w1", ""), ("w1", "\ud800")):
        with pytest.raises(WorkerRefused, match="not valid"):
            tokens.use(worker, secret, b"key")
    assert tokens.use("w1", token.secret, b"key") == admission
    assert tokens.use("w1", token.secret, b"key") == admission  # the answer was lost
    with pytest.raises(WorkerRefused):
        tokens.use("w1", token.secret, b"another key")


def test_a_token_expires(tokens: JoinTokens, clock: Clock) -> None:
    token = tokens.create(AUTHORITY, Admission("w1"), ttl_s=60)
    clock.now_ms += 61_000
    with pytest.raises(WorkerRefused, match="expired"):
        tokens.use("w1", token.secret, b"key")


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), 31 * 24 * 3600.0])
def test_unusable_times_are_refused(tokens: JoinTokens, ttl_s: float) -> None:
    with pytest.raises(InvalidArgument, match="30 days"):
        tokens.create(AUTHORITY, Admission("w1"), ttl_s)


def test_the_pool_keeps_only_hashes_also_over_a_restart(tokens: JoinTokens, documents: Documents, clock: Clock) -> None:
    token = tokens.create(AUTHORITY, Admission("w1"))
    other = tokens.create(AUTHORITY, Admission("w2"))
    assert all(token.secret.encode() not in raw for raw in documents.kept.values())
    again = JoinTokens(documents, clock)
    assert again.revoke("w1") == 1
    with pytest.raises(WorkerRefused):
        again.use("w1", token.secret, b"key")
    assert again.use("w2", other.secret, b"key").worker == "w2"


def test_a_token_is_for_somebody(tokens: JoinTokens, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="worker's id"):
        tokens.create(AUTHORITY, Admission(""))
