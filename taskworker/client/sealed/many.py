"""Calls on many sealed files at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from storage.errors import InvalidArgument, SealBroken, StorageError
from storage.limits import CHUNK_SIZE_MIN, BytesLike
from storage.options import PushOptions
from storage.outcomes import GetOutcome, PushOutcome
from taskworker.client import many
from taskworker.client.deadline import Deadline
from taskworker.client.many import ManyWanted, NamedSource
from taskworker.client.sealed.files import SealedFiles
from taskworker.client.sealed.layout import Layout
from taskworker.client.sources import Source


def push_many(
    files: SealedFiles, sources: Iterable[NamedSource], options: PushOptions, deadline: Deadline
) -> Iterator[PushOutcome]:
    """Push many files sealed, and yield the outcome of each, in order; see ``Client.push_many``."""
    options = replace(options, chunk_size=options.chunk_size or files.channel.describe(deadline).chunk_size)

    current = files.keys.current
    former = files.under_former_keys(options.user_id, deadline)

    def prepared(filename: str, source: Source) -> tuple[str, Source]:
        key = former.get(filename, current)
        if key is not current and options.note:
            raise InvalidArgument(
                "a file that is sealed with a former key cannot get a note together with others: push it by itself, or "
                "run `taskworker rotate-own-key` first"
            )
        content, one = files.prepared(key, replace(options, filename=filename), source, deadline)
        return one.filename, content

    yield from many.push_many(
        files.channel,
        sources,
        replace(options, note=current.sealed_note(options.user_id, options.note, None)),
        deadline,
        prepared=prepared,
        shown=lambda version: files.opened(version, options.user_id),
    )


def get_many(
    files: SealedFiles, asked: Iterable[str], wanted: ManyWanted, deadline: Deadline, retries: int
) -> Iterator[GetOutcome]:
    """Get many sealed files, and yield the outcome of each, in order; see ``Client.get_many``."""
    waiting: deque[str] = deque()
    former = files.under_former_keys(wanted.user_id, deadline) if wanted.by_name else {}

    def stored() -> Iterator[str]:
        for file in asked:
            waiting.append(file)
            key = former.get(file, files.keys.current)
            yield key.sealed_name(wanted.user_id, file) if wanted.by_name else file

    most = None if wanted.bytes_max is None else Layout(wanted.bytes_max, CHUNK_SIZE_MIN).stored_bytes
    for outcome in many.get_many(files.channel, stored(), replace(wanted, bytes_max=most), deadline, retries):
        yield _opened(files, replace(outcome, file=waiting.popleft()), wanted)


def _opened(files: SealedFiles, outcome: GetOutcome, wanted: ManyWanted) -> GetOutcome:
    """The outcome with the file opened; what is wrong with it becomes its error."""
    if outcome.version is None:
        return outcome
    try:
        version = files.opened(outcome.version, wanted.user_id)
        if outcome.file != (version.filename if wanted.by_name else version.file_id):
            raise SealBroken("the server answered with another file than was asked for; do not trust it")
        raw = outcome.data
        if raw is None or outcome.error is not None:
            return replace(outcome, version=version)

        def fetch(offset: int, length: int) -> Iterator[BytesLike]:
            yield memoryview(raw)[offset : offset + length]

        content = files.verified(outcome.version, wanted.user_id, fetch)
        if wanted.bytes_max is not None and version.size > wanted.bytes_max:
            return replace(outcome, version=version, data=None)
        return replace(outcome, version=version, data=b"".join(content.content(0, version.size)))
    except StorageError as error:
        return replace(outcome, version=None, data=None, error=error)
