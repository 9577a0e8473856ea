"""Signatures of a store, and recovery of its secret from shares of which some are false."""

from __future__ import annotations

import random
from contextlib import closing
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.formats.authenticity import (
    Authority,
    Mark,
    StoreSecret,
    decode_mark,
    decode_secret,
    encode_mark,
    new_mark,
    new_secret,
    recover_secret,
    sharing_threshold,
)
from storage.formats.manifest import RootNode, encode_root, object_id
from storage.formats.tombstones import (
    Tombstone,
    decode_tombstone,
    encode_tombstone,
    is_signed_tombstone,
    sign_tombstone,
)
from storage.formats.version_records import NO_MAC, RECORD_FORMAT, SIGNED_FORMAT, SignedRecord
from storage.formats.versions import decode_version, is_signed_version, read_version, seal_signed
from storage.formats.voices import voices
from storage.maintenance.agreement import Agreement
from storage.maintenance.belief import Belief
from tests.storage.helpers import CHUNK

NONCE = bytes(range(16))
text = st.text(st.characters(codec="utf-8"), max_size=40)
sequences = st.integers(0, (1 << 63) - 1)


def _secret(threshold: int, seed: int = 1) -> StoreSecret:
    return new_secret(threshold, random.Random(seed).randbytes)


def _authority(seed: int = 1) -> Authority:
    authority = Authority()
    authority.use(_secret(4, seed))
    return authority


# -- signatures -----------------------------------------------------------------------------------------


@given(names=st.tuples(text, text, text), sequence=sequences, committed=sequences, flipped=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_signed_version_comes_back_and_bears_no_change(
    names: tuple[str, str, str], sequence: int, committed: int, flipped: int
) -> None:
    root = RootNode(1, 10, CHUNK, 1, 1, 0, 0, bytes(32))
    raw_root = encode_root(root)
    user, name, note = names
    unsigned = SignedRecord(
        SIGNED_FORMAT, NONCE, None, object_id(raw_root), 10, user, name, 0, sequence, None, note, committed, NO_MAC
    )
    stored = seal_signed(unsigned, root, raw_root, _authority())
    assert decode_version(stored.raw, stored.version_id) == stored == read_version(stored.raw, stored.version_id)
    assert is_signed_version(stored, _authority())
    assert not is_signed_version(stored, _authority(2))
    assert not is_signed_version(stored, Authority())
    raw = bytearray(stored.raw)
    raw[flipped % len(raw)] ^= 1
    try:
        changed = decode_version(bytes(raw))
    except FormatError:
        return
    assert not is_signed_version(changed, _authority())


@given(sequence=sequences, flipped=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_signed_tombstone_comes_back_and_bears_no_change(sequence: int, flipped: int) -> None:
    raw = sign_tombstone(NONCE, sequence, _authority())
    tombstone = decode_tombstone(raw)
    assert (tombstone.format, tombstone.file_id, tombstone.sequence) == (SIGNED_FORMAT, NONCE, sequence)
    assert is_signed_tombstone(raw, tombstone, _authority())
    assert not is_signed_tombstone(raw, tombstone, _authority(2))
    changed = bytearray(raw)
    changed[flipped % len(raw)] ^= 1
    try:
        other = decode_tombstone(bytes(changed))
    except FormatError:
        return
    assert not is_signed_tombstone(bytes(changed), other, _authority())


# -- shares ---------------------------------------------------------------------------------------------


@given(slot=st.integers(0, 1 << 20), threshold=st.integers(1, 9), nonce=st.binary(min_size=16, max_size=16))
@settings(max_examples=30, deadline=None)
def test_marks_and_secrets_come_back(slot: int, threshold: int, nonce: bytes) -> None:
    secret = _secret(threshold)
    mark = new_mark(slot, secret, nonce)
    assert decode_mark(encode_mark(mark)) == mark
    assert decode_secret(secret.encoded()) == secret


@given(raw=st.binary(max_size=120))
@settings(max_examples=50, deadline=None)
def test_noise_is_no_mark_and_no_secret(raw: bytes) -> None:
    for decode in (decode_mark, decode_secret):
        with pytest.raises(FormatError):
            decode(raw)


def _marks(secret: StoreSecret, slots: range) -> list[tuple[int, Mark]]:
    return [(slot, new_mark(slot, secret, NONCE)) for slot in slots]


@pytest.mark.parametrize("threshold", [1, 2, 4, 5])
def test_any_so_many_shares_give_the_secret_back_and_fewer_do_not(threshold: int) -> None:
    secret = _secret(threshold)
    marks = _marks(secret, range(6))
    for chosen in combinations(marks, threshold):
        assert recover_secret(chosen, threshold_min=threshold) == secret
    for chosen in combinations(marks, threshold - 1):
        assert recover_secret(chosen, threshold_min=threshold) is None


@pytest.mark.parametrize("liars", list(combinations(range(6), 2)))
def test_false_shares_are_found_out(liars: tuple[int, int]) -> None:
    """Two of six volumes lie about their share, its index, or the whole secret."""
    secret, false = _secret(4), _secret(4, seed=2)
    marks = _marks(secret, range(6))
    honest = [(volume, mark) for volume, mark in marks if volume not in liars]
    forged = [(liar, new_mark(liar, false, NONCE)) for liar in liars]
    wrong_share = [(liar, Mark(1, liar, NONCE, 4, liar + 1, bytes(16), secret.commitment)) for liar in liars]
    stolen_index = [(liar, Mark(1, liar, NONCE, 4, honest[0][1].index, bytes(16), secret.commitment)) for liar in liars]
    for lies in (forged, wrong_share, stolen_index):
        assert recover_secret([*lies, *honest], threshold_min=4) == secret


def test_a_liar_cannot_lower_the_threshold_to_one() -> None:
    """Nor can it count more than once for a secret that it made up."""
    own = _secret(1, seed=3)
    alone = _marks(own, range(1))
    assert recover_secret(alone, threshold_min=4) is None
    four = _secret(4, seed=3)
    assert recover_secret([(0, new_mark(slot, four, NONCE)) for slot in range(6)], threshold_min=4) is None


@pytest.mark.parametrize(("k", "n"), [(4, 6), (1, 3), (2, 4), (3, 3), (17, 20), (1, 1)])
def test_neither_liars_nor_losses_decide(k: int, n: int) -> None:
    """Volumes that may lie at once cannot compute the secret; if possible, those that must be left can."""
    threshold = sharing_threshold(k, n, remote=True)
    assert threshold > n - k
    assert threshold >= k
    assert sharing_threshold(k, n, remote=False) == 1


def test_one_owner_cannot_make_up_a_secret_with_many_volumes() -> None:
    own, true = _secret(4, seed=3), _secret(4)
    crowd, honest = range(4, 9), range(4)
    voice_of = voices({**dict.fromkeys(crowd, "crowd"), **{slot: f"owner {slot}" for slot in honest}}, 4)
    made_up = _marks(own, crowd)
    assert recover_secret(made_up, threshold_min=4, voice_of=voice_of) is None
    assert recover_secret([*made_up, *_marks(true, honest)], threshold_min=4, voice_of=voice_of) == true


@pytest.mark.parametrize(
    ("owners", "count"),
    [
        (["", "", "", ""], 4),  # owners are unknown
        (["a", "a", "a", "a"], 4),  # all have the same owner, so that nobody else could agree
        (["a", "a", "a", "b"], 2),
        (["a", "", "", ""], 4),  # one that names an owner silences nobody
        (["a", "b", "c", "", "", ""], 4),  # those without an owner count as one if enough others name theirs
    ],
)
def test_an_owner_has_one_voice(owners: list[str], count: int) -> None:
    assert len({*voices(dict(enumerate(owners)), 3).values()}) == count


def test_what_a_volume_has_shown_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the owner of the most reports is forgotten if too few others agree; what is agreed on stays."""
    monkeypatch.setattr("storage.maintenance.agreement.room_bytes", lambda _: 800)
    keys = [bytes([number]) * 33 for number in range(10)]
    with closing(Agreement(2, tmp_path, voices({0: "crowd", 1: "crowd", 2: "big", 3: "other"}, 2))) as agreement:
        assert agreement.show(keys[:4], 0) == agreement.show(keys[3:7], 1) == set()
        assert agreement.show(keys[5:], 2) == {*keys[5:7]}
        assert not agreement.is_crowded()
        assert agreement.show([b"x" * 33], 3) == set()
        assert agreement.is_crowded()
        assert agreement.fullest() == 0
        agreement.forget(0)
        assert not agreement.is_crowded()
        assert {holders[0] for _, holders in agreement.rest()} == {1, 2, 3}
        assert agreement.show(keys[3:7], 3) == {*keys[3:7]}
        assert agreement.fullest() == 2
        for volume in range(4):
            agreement.forget(volume)
        assert agreement.fullest() is None
        assert list(agreement.rest()) == []
        assert agreement.show(keys[3:7], 0) == {*keys[3:7]}


def test_what_no_mac_vouches_for_is_believed_of_owners_not_of_ids(tmp_path: Path) -> None:
    tombstone = Tombstone(RECORD_FORMAT, bytes(16), 7)
    raw = encode_tombstone(tombstone)
    voice_of = voices({0: "crowd", 1: "crowd", 2: "crowd", 3: "other"}, 2)
    belief = Belief(Authority(), Agreement(2, tmp_path, voice_of))
    try:
        question = belief.about_tombstone(object_id(raw), raw, tombstone)
        assert question is not None
        assert not any(belief.agreed([question], slot) for slot in (0, 1, 2))
        assert [refused.holders for refused in belief.refused()] == [[0, 1, 2]]
        assert belief.agreed([question], 3) == {question}
        assert list(belief.refused()) == []
    finally:
        belief.close()
