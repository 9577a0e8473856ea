"""One changed byte in a large file: revise, synchronize, and pushing the same content again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from benchmarks.measure import MIB, Figure, SuiteResult, Target, megabytes_per_second, seconds_of
from benchmarks.session import Session, human_size, sampled, settle, times
from benchmarks.suites.engine import PUSH_LIMIT
from benchmarks.workload import USER, RandomContent
from storage import FileStorage, ManifestDiff, Patch, Version
from taskworker.rpc.conversion import diff_to_proto

STRIPE_BYTES = MIB * 3 // 2
WIRE_OVERHEAD_BYTES = 8 * 1024
SHARD_HEADERS_BYTES = 6 * 256
METADATA_COPIES = 6
FAN_OUT, ID_BYTES = 1024, 32
VERSION_BYTES = 1024
"""Upper bound for the size of a version object plus the headers of its copies and of those of its manifest node."""
FASTER = 200.0
REVISE_LIMIT = "BLAKE3 + encode + shard digests + write and fsync of one stripe + one LMDB commit"
SYNCHRONIZE_LIMIT = "read + BLAKE3 of one chunk"
AGAIN_LIMIT = "read + BLAKE3, one after another"
FIRST_CHANGED_CHUNK = 7


@dataclass(slots=True)
class Samples:
    """Samples by round, in seconds unless the name says otherwise."""

    push: list[float] = field(default_factory=list)
    push_limit: list[Mapping[str, float]] = field(default_factory=list)
    revise: list[float] = field(default_factory=list)
    revise_limit: list[Mapping[str, float]] = field(default_factory=list)
    revise_wire_bytes: list[float] = field(default_factory=list)
    revise_stored_bytes: list[float] = field(default_factory=list)
    synchronize: list[float] = field(default_factory=list)
    synchronize_limit: list[Mapping[str, float]] = field(default_factory=list)
    synchronize_wire_bytes: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    again_limit: list[Mapping[str, float]] = field(default_factory=list)
    again_stored_bytes: list[float] = field(default_factory=list)
    again_chunks: list[float] = field(default_factory=list)


def run(session: Session) -> SuiteResult:
    """In each round, push into a fresh store, push the same again, revise one chunk, and synchronize an old copy."""
    content = RandomContent("revise", session.sizes.file_bytes)
    samples = Samples()
    with session.scratch("revise") as root:
        session.progress.step("making the file")
        source = content.write_to(root / "source")
        for _ in session.rounds(f"changes of one byte in {human_size(content.size)}"):
            with session.scratch("revise-store") as home, FileStorage.open(home / "store") as store:
                _round(session, store, source, content, samples)
    return _result(session, samples)


def _round(session: Session, store: FileStorage, source: Path, content: RandomContent, samples: Samples) -> None:
    limits = session.limits
    samples.push.append(seconds_of(lambda: store.push(source, filename="file", user_id=USER)))
    sampled(lambda: limits.push_parts(source, content.size), samples.push_limit)
    _push_again(store, source, samples)
    hashing = {"read": limits.read(source), "BLAKE3": limits.hash_chunks(content.size)}
    samples.again_limit.append(hashing)
    head = store.find("file", user_id=USER)
    assert head is not None
    index = (FIRST_CHANGED_CHUNK + len(samples.revise) * 131) % head.chunk_count
    _revise(store, head, content.piece(index), index, samples)
    sampled(lambda: limits.stripe_parts(session.directory), samples.revise_limit)
    _synchronize(store, head, samples)
    one_chunk = {part: seconds * MIB / content.size for part, seconds in hashing.items()}
    samples.synchronize_limit.append(one_chunk)


def _push_again(store: FileStorage, source: Path, samples: Samples) -> None:
    """Push the same content under another name: a new file without new chunks."""
    before = store.stats()
    settle()
    samples.again.append(seconds_of(lambda: store.push(source, filename="again", user_id=USER)))
    after = store.stats()
    growth = after.stored_bytes - before.stored_bytes
    samples.again_stored_bytes.append(growth)
    samples.again_chunks.append(growth // STRIPE_BYTES)


def _revise(store: FileStorage, head: Version, chunk: bytes, index: int, samples: Samples) -> None:
    changed = bytes([chunk[0] ^ 1]) + chunk[1:]
    patch = Patch(index, blake3(changed).digest(), changed)
    difference = ManifestDiff(head.version_id, head.size, head.chunk_size, (patch,))
    before = store.stats().stored_bytes
    settle()
    samples.revise.append(seconds_of(lambda: store.revise(head.file_id, difference, user_id=USER)))
    samples.revise_stored_bytes.append(store.stats().stored_bytes - before)
    samples.revise_wire_bytes.append(wire_bytes(difference))


def _synchronize(store: FileStorage, old: Version, samples: Samples) -> None:
    answers: list[ManifestDiff] = []
    samples.synchronize.append(
        seconds_of(lambda: answers.append(store.synchronize(old.file_id, have_version_id=old.version_id, user_id=USER)))
    )
    samples.synchronize_wire_bytes.append(wire_bytes(answers[0]))


def wire_bytes(difference: ManifestDiff) -> int:
    """Return the size of the diff as the gRPC services send it."""
    return len(diff_to_proto(difference).SerializeToString())


def _result(session: Session, samples: Samples) -> SuiteResult:
    size = session.sizes.file_bytes
    label = human_size(size)
    push = Figure(
        f"push {label}, durable",
        "MB/s",
        megabytes_per_second(size, samples.push),
        limit=times(samples.push_limit).limit(PUSH_LIMIT, size / 1e6),
    )
    again = Figure(
        f"push the same {label} again",
        "MB/s",
        megabytes_per_second(size, samples.again),
        limit=times(samples.again_limit).limit(AGAIN_LIMIT, size / 1e6),
        note="under another name",
    )
    revise = Figure(
        f"revise 1 byte of {label}",
        "ms",
        _milliseconds(samples.revise),
        "lower",
        times(samples.revise_limit).limit_ms(REVISE_LIMIT),
    )
    synchronize = Figure(
        "synchronize a copy one revision behind",
        "ms",
        _milliseconds(samples.synchronize),
        "lower",
        times(samples.synchronize_limit).limit_ms(SYNCHRONIZE_LIMIT),
    )
    return SuiteResult("revise-sync", (push, again, revise, synchronize), _targets(session, samples, again))


def _targets(session: Session, samples: Samples, again: Figure) -> tuple[Target, ...]:
    reduced = session.sizes.reduced
    wire_bound = MIB + WIRE_OVERHEAD_BYTES
    path_bytes = _path_bytes(session.sizes.file_bytes)
    stored_bound = STRIPE_BYTES + SHARD_HEADERS_BYTES + path_bytes
    revise_gain = tuple(push / change for push, change in zip(samples.push, samples.revise, strict=True))
    synchronize_gain = tuple(push / change for push, change in zip(samples.push, samples.synchronize, strict=True))

    def at_most(text: str, bound: float, found: list[float]) -> Target:
        return Target("f", text, "at most", bound, "B", tuple(found), "", reduced)

    def at_least(text: str, bound: float, found: tuple[float, ...]) -> Target:
        figure = again.name if found == again.ratios else ""
        return Target("f", text, "at least", bound, "x", found, figure, reduced, bound == FASTER)

    return (
        at_most("revise of 1 byte: bytes on the wire (1 chunk + 8 KiB)", wire_bound, samples.revise_wire_bytes),
        at_most("revise of 1 byte: bytes stored (1 stripe + path)", stored_bound, samples.revise_stored_bytes),
        at_most("synchronize: bytes on the wire (1 chunk + 8 KiB)", wire_bound, samples.synchronize_wire_bytes),
        at_least("revise: times faster than the push", FASTER, revise_gain),
        at_least("synchronize: times faster than the push", FASTER, synchronize_gain),
        at_most("same 1 GiB again: stripes stored", 0, samples.again_chunks),
        at_most(
            "same 1 GiB again: bytes stored (its manifest and version only)", path_bytes, samples.again_stored_bytes
        ),
        at_least("same 1 GiB again / (read + BLAKE3)", 0.8, again.ratios),
    )


def _path_bytes(size: int) -> int:
    """Return an upper bound for what a change of one chunk stores besides the chunk: manifest path and version."""
    chunks, path = -(-size // MIB), 0
    while True:
        path += min(chunks, FAN_OUT) * ID_BYTES + VERSION_BYTES
        chunks = -(-chunks // FAN_OUT)
        if chunks <= 1:
            return METADATA_COPIES * path


def _milliseconds(seconds: list[float]) -> tuple[float, ...]:
    return tuple(one * 1e3 for one in seconds)
