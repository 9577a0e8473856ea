"""Encrypting what was stored before the pool encrypted, once an operator asks for it."""

from __future__ import annotations

from collections.abc import Callable

from storage import FileStorage
from storage.catalog import Catalog
from storage.errors import (
    ConflictError,
    DataLossError,
    FileNotFound,
    InvalidArgument,
    ShardsUnavailable,
    StorageError,
    VersionNotFound,
)
from storage.maintenance.plain_versions import FoundHead, heads
from storage.runtime import Runtime
from taskworker.pool.background.driver import Signals
from taskworker.pool.background.naming_versions import ListingsToRenew, successor_with_same_content
from taskworker.pool.background.work import Tranquility, WorkJournal
from taskworker.reports import WorkStatus

ENCRYPT = "encrypt"
_WANTED = "pool-encrypt-existing"
_NEW_VERSIONS, _ONLY_NEW_VERSIONS = b"1", b"2"
_RETRY_S = 300.0
_RETRY_SOON_S = 15.0  # if nothing can be written now, for example as the workers of a pool that started are not back
MoveLinks = Callable[[Callable[[str, str, str], str | None]], None]
"""Has links show other versions: told what returns, by user, file and version, the version that takes its place."""
_OF_ONE_FILE = (DataLossError, ShardsUnavailable)


class Encrypting:
    """Gives files whose heads are not encrypted a new version with the same content (a ``BackgroundWork``).

    Deployed functions stay as they are until they are deployed again, since they are known by their versions. The work
    looks at one file after the other. After a restart of the pool, it begins again, and skips what is encrypted.

    Args:
        store: the store.
        catalog: where the operator's request is stored until it is done.
        journal: stores outcomes.
        tranquility: while users are active, how long to rest after each file, in multiples of the time that it took.
        runtime: clocks.

    Attributes:
        move_links: has links show other versions; None: there are no links.
    """

    name = "encrypting"
    failure_text = "files that were stored before are encrypted later: %s"
    fault_text = "encrypting files failed unexpectedly"

    def __init__(
        self, store: FileStorage, catalog: Catalog, journal: WorkJournal, *, tranquility: float, runtime: Runtime
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._journal = journal
        self._runtime = runtime
        self.move_links: MoveLinks | None = None
        self.signals = Signals()
        self._tranquility = Tranquility(tranquility, store.is_busy, self.signals.closing, runtime.monotonic_s)
        self._running: tuple[int, int] | None = None  # files looked at, and files in total
        self._next_s = runtime.monotonic_s()

    def request(self, *, drop_earlier: bool) -> None:
        """Encrypt all files; see :meth:`views` for the progress.

        Args:
            drop_earlier: whether to drop earlier versions that are not encrypted, once all heads are.

        Raises:
            InvalidArgument: the pool does not encrypt.
        """
        if not self._store.upkeep.keys.seals:
            raise InvalidArgument("this pool does not encrypt: start it with --encryption first")
        self._catalog.save_document(_WANTED, _ONLY_NEW_VERSIONS if drop_earlier else _NEW_VERSIONS)
        self._next_s = self._runtime.monotonic_s()
        self.signals.wanted.set()

    def views(self) -> list[WorkStatus]:
        """See :meth:`ShownWork.views`. Nothing is shown of what was never asked for."""
        record, running = self._journal.record(ENCRYPT), self._running
        if running is not None:
            return [WorkStatus(ENCRYPT, "running", *running, errors=record.errors, error=record.error, unit="files")]
        if not self._catalog.document(_WANTED):
            return [record.view(ENCRYPT)] if record.ended_ms else []
        return [record.view(ENCRYPT, "failed" if record.errors else "waiting")]

    def pause_s(self) -> float | None:
        """See :meth:`BackgroundWork.pause_s`."""
        if not self._catalog.document(_WANTED):
            return None
        return max(0.0, self._next_s - self._runtime.monotonic_s())

    def step(self) -> None:
        """Encrypt all files, if that is wanted and due."""
        wanted = self._catalog.document(_WANTED)
        if not wanted or self._next_s > self._runtime.monotonic_s():
            return
        if not self._store.upkeep.keys.seals:
            self._failed("this pool does not encrypt any more: start it with --encryption")
            return
        try:
            encrypted, problem = self._encrypt_all()
            listings = ListingsToRenew(self._store, self._catalog, self.signals.check_open)
            listings.renew_all(_is_a_person)
        finally:
            self._running = None
        if problem:
            self._failed(problem)
            return
        result = f"encrypted {encrypted:,} files"
        if listings.too_large:
            result += f"; push the {listings.too_large:,} largest folders again, whose listings were not renewed"
        if wanted == _ONLY_NEW_VERSIONS:
            if self.move_links is not None:
                self.move_links(self._successor)
            dropped = self._store.upkeep.drop_plain(_is_a_person, self._pace)
            result += (
                f", and dropped {dropped:,} earlier versions that were not; `taskworker collect` frees their space"
            )
        self._catalog.save_document(_WANTED, b"")
        self._journal.ended(ENCRYPT, result)

    def _encrypt_all(self) -> tuple[int, str]:
        """Return how many files were encrypted, and why others were not.

        Raises:
            StorageError: nothing can be written now.
        """
        encrypted, failed, problem = 0, 0, ""
        total = self._catalog.counters().files
        for at, head in enumerate(heads(self._catalog)):
            self._running = (at, max(at, total))
            self.signals.check_open()
            if not head.is_plain or not _is_a_person(head.user_id):
                continue
            began_s = self._runtime.monotonic_s()
            try:
                encrypted += self._encrypt(head)
            except _OF_ONE_FILE as error:
                failed, problem = failed + 1, f"file {head.file_id}: {error}"
            self._tranquility.rest(self._runtime.monotonic_s() - began_s)
        return encrypted, f"{failed:,} files could not be encrypted; {problem}" if failed else ""

    def _encrypt(self, head: FoundHead) -> bool:
        """Give a file a new version with the same content; False: somebody else changed it meanwhile."""
        try:
            self._store.upkeep.encrypt_head(head.file_id, head.user_id)
        except (ConflictError, FileNotFound, VersionNotFound):
            return False  # a new head is encrypted
        return True

    def _pace(self, worked_s: float) -> None:
        self._tranquility.rest(worked_s)
        self.signals.check_open()

    def _successor(self, user_id: str, file_id: str, version_id: str) -> str | None:
        return successor_with_same_content(self._store, file_id, version_id, user_id)

    def _failed(self, problem: str, retry_s: float = _RETRY_S) -> None:
        self._next_s = self._runtime.monotonic_s() + retry_s
        self._journal.failed(ENCRYPT, problem, self._journal.now_ms() + int(retry_s * 1000))

    def note_failure(self, error: Exception) -> None:
        """See :meth:`BackgroundWork.note_failure`."""
        if isinstance(error, StorageError):
            self._failed(str(error), _RETRY_SOON_S)
        else:
            self._failed(repr(error))

    def stop(self) -> None:
        """See :meth:`BackgroundWork.stop`."""
        self.signals.close()


def _is_a_person(user_id: str) -> bool:
    """Whether this is no reserved name, such as the one that owns deployed functions."""
    return ":" not in user_id
