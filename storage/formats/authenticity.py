"""The store's secret, which signs versions and tombstones, and its shares, which the volumes keep.

Machines that hold shards may lie. Chunks and nodes are named by their hash, but anybody could make up versions and
tombstones, so these carry a MAC. Its key is derived from a secret in the catalog. Each volume has a share of the secret
(Shamir's secret sharing): if the catalog is lost, enough volumes together restore it, while fewer reveal nothing.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, islice
from typing import Annotated, Literal

import msgspec
from blake3 import blake3

from storage.errors import FormatError, InvalidArgument
from storage.formats.voices import Voice

SECRET_BYTES = 16  # an element of the library's field, GF(2^128)
MAC_BYTES = 32
NONCE_BYTES = 16
THRESHOLD_MAX = 256
_KEY_CONTEXT = "TaskWorker 2026-11 MAC key of versions and tombstones"
_COMMITMENT_CONTEXT = "TaskWorker 2026-11 commitment to the store's secret"
# Each sharing over t points takes about t * t multiplications of some 20 us: a few seconds in all at most.
_COMBINATIONS_WORK_MAX = 200_000

_Point = Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


def sharing_threshold(k: int, n: int, *, remote: bool) -> int:
    """How many volumes are needed to restore the store's secret.

    Volumes on this machine's disks belong to the owner, so each may know it. The number of workers that may lie at
    once (n - k) must not be enough, and the number that is needed to read files (k) should be.
    """
    return max(k, n - k + 1) if remote else 1


class StoreSecret(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The secret, and the polynomial that shares it. The catalog keeps it as a MessagePack array.

    Attributes:
        format: 1.
        points: the polynomial's values at 0, 1, … threshold - 1. The value at 0 is the secret.
    """

    format: Literal[1]
    points: Annotated[list[_Point], msgspec.Meta(min_length=1, max_length=THRESHOLD_MAX)]

    @property
    def threshold(self) -> int:
        """How many shares restore it."""
        return len(self.points)

    @property
    def commitment(self) -> bytes:
        """Shows whether a restored secret is the right one, and reveals nothing else about it."""
        return blake3(self.points[0], derive_key_context=_COMMITMENT_CONTEXT).digest()

    @property
    def mac_key(self) -> bytes:
        """The key of the MACs, 32 bytes."""
        return blake3(self.points[0], derive_key_context=_KEY_CONTEXT).digest()

    def share(self, index: int) -> bytes:
        """The polynomial's value at ``index``, from 1 on."""
        if index < 1:
            raise InvalidArgument("shares have indexes from 1 on")
        return self._value(index)

    def _value(self, index: int) -> bytes:
        if index < self.threshold:
            return self.points[index]
        # After a shift by ``index``, which is an exclusive or in this field, the wanted value is the one at 0.
        return _at_zero({at ^ index: point for at, point in enumerate(self.points)})

    def encoded(self) -> bytes:
        """The form that the catalog keeps."""
        return msgspec.msgpack.encode(self)


_secrets = msgspec.msgpack.Decoder(StoreSecret)


def new_secret(threshold: int, token_bytes: Callable[[int], bytes]) -> StoreSecret:
    """A random secret, of which ``threshold`` shares are needed."""
    return StoreSecret(1, [token_bytes(SECRET_BYTES) for _ in range(min(threshold, THRESHOLD_MAX))])


def decode_secret(raw: bytes) -> StoreSecret:
    """Inverse of :meth:`StoreSecret.encoded`.

    Raises:
        FormatError: malformed.
    """
    try:
        return _secrets.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"the store's secret in the catalog is damaged ({error})") from error


class Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a store writes to each volume: its share, and a nonce that identifies this state of the volume.

    Attributes:
        format: 1.
        slot: the volume's number in the store.
        nonce: random; a volume gets a mark with a new nonce after it was repaired.
        threshold: how many shares restore the secret.
        index: index of the share, 1 or more.
        share: the share.
        commitment: commitment to the secret.
    """

    format: Literal[1]
    slot: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=THRESHOLD_MAX)]
    index: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    share: _Point
    commitment: _Hash


_marks = msgspec.msgpack.Decoder(Mark)


def new_mark(slot: int, secret: StoreSecret, nonce: bytes) -> Mark:
    """The mark of the volume in a slot."""
    return Mark(1, slot, nonce, secret.threshold, slot + 1, secret.share(slot + 1), secret.commitment)


def encode_mark(mark: Mark) -> bytes:
    """Canonical bytes of a mark."""
    return msgspec.msgpack.encode(mark)


def decode_mark(raw: bytes) -> Mark:
    """Inverse of :func:`encode_mark`.

    Raises:
        FormatError: malformed.
    """
    try:
        return _marks.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"mark is malformed: {error}") from error


def recover_secret(
    marks: Iterable[tuple[int, Mark]], *, threshold_min: int, voice_of: Mapping[int, Voice] | None = None
) -> StoreSecret | None:
    """The secret that enough volumes have shares of; None if there are too few shares, or too many false ones.

    Volumes may lie: combinations of shares are tried until one fits the commitment that most volumes show. A volume
    counts once for each secret, whatever it shows.

    Args:
        marks: (volume, mark) of every mark that was found.
        threshold_min: secrets that fewer volumes could have made up are ignored.
        voice_of: gives the voice of each volume; volumes of one owner count once. With fewer voices, all must agree.
    """
    claims: dict[tuple[int, bytes], dict[int, Mark]] = {}
    for volume, mark in marks:
        if mark.threshold >= threshold_min:
            claims.setdefault((mark.threshold, mark.commitment), {})[volume] = mark
    for (threshold, commitment), by_volume in sorted(claims.items(), key=lambda claim: -len(claim[1])):
        if voice_of is not None:
            enough = min(threshold_min, len({*voice_of.values()}))
            if len({voice_of.get(volume) for volume in by_volume}) < enough:
                continue  # a single owner with many volumes could have made it up
        secret = _recover(threshold, commitment, [(mark.index, mark.share) for mark in by_volume.values()])
        if secret is not None:
            return secret
    return None


def _recover(threshold: int, commitment: bytes, shares: list[tuple[int, bytes]]) -> StoreSecret | None:
    tries = max(1, _COMBINATIONS_WORK_MAX // (threshold * threshold))
    for combination in islice(combinations(sorted(shares), threshold), tries):
        chosen = dict(combination)
        if len(chosen) == threshold:  # a liar may use another volume's index
            secret = StoreSecret(1, list(_points(chosen, threshold)))
            if hmac.compare_digest(secret.commitment, commitment):
                return secret
    return None


def _points(shares: Mapping[int, bytes], threshold: int) -> Iterator[bytes]:
    """The values at 0 … threshold - 1 of the polynomial through these shares."""
    for at in range(threshold):
        yield shares[at] if at in shares else _at_zero({index ^ at: share for index, share in shares.items()})


def _at_zero(shares: Mapping[int, bytes]) -> bytes:
    # Imported here, as it takes 20 ms, and commands that only read do not need it.
    from Crypto.Protocol.SecretSharing import Shamir

    return Shamir.combine(list(shares.items()))


class Authority:
    """Signs what the store commits, and verifies its signatures. Thread-safe.

    Without a secret, it vouches for nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret: StoreSecret | None = None
        self._key = b""

    @property
    def secret(self) -> StoreSecret | None:
        """The secret, if there is one yet."""
        return self._secret

    def use(self, secret: StoreSecret) -> None:
        """Sign with this secret from now on."""
        with self._lock:
            self._secret, self._key = secret, secret.mac_key

    def sign(self, body: bytes) -> bytes:
        """The MAC of these bytes.

        Raises:
            FormatError: there is no secret.
        """
        if not self._key:
            raise FormatError("the store has no secret yet to sign with")
        return blake3(body, key=self._key).digest(MAC_BYTES)

    def vouches(self, body: bytes, mac: bytes) -> bool:
        """Whether this store signed these bytes."""
        return bool(self._key) and hmac.compare_digest(self.sign(body), mac)
