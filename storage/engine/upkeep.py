"""Maintenance of a store: scrub, repair, collect and rebuild, and shard stores that join, leave and come back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from statistics import median_low

from storage.arguments import checked
from storage.batching import batched
from storage.catalog.port import Catalog, DamagedSettings, Usage, user_key
from storage.diff.manifest_diff import ManifestDiff
from storage.engine.parts import StoreParts
from storage.errors import InvalidArgument, StoreFull, StoreUnavailable
from storage.formats.versions import Version
from storage.formats.voices import agreement_quorum, voices
from storage.keys import StripeKey
from storage.maintenance.agreement import Agreement
from storage.maintenance.belief import Belief
from storage.maintenance.collect import collect, missed_stores
from storage.maintenance.living_secrets import living_secrets
from storage.maintenance.plain_versions import plain_versions_below_sealed_heads
from storage.maintenance.readback import ReadBack
from storage.maintenance.rebuild import rebuild
from storage.maintenance.repair import Watch, repair
from storage.maintenance.scrub import scrub
from storage.options import PushOptions
from storage.progress import Progress
from storage.reports import CollectReport, RebuildReport, RepairReport, ScrubReport, ShredReport
from storage.settings import with_incomplete
from storage.shards import ShardStore
from storage.write.upload import Upload

log = logging.getLogger(__name__)

_DROPPED_TOGETHER = 100  # by one transaction and flush; users' commits wait meanwhile


class Upkeep:
    """The maintenance of one store. Thread-safe.

    Args:
        parts: the parts of the store.

    Attributes:
        keys: the users' keys of an encrypted store.
        on_collected: called with the report of each :meth:`collect`.
        on_rebuilt: called after each successful :meth:`rebuild`.
        policy: what users may store. A server sets it.
    """

    def __init__(self, parts: StoreParts) -> None:
        self._parts = parts
        self._catalog = parts.catalog
        self._volumes = parts.volumes
        self._lineage = parts.lineage
        self.keys = parts.keys
        self._commits = parts.pushing.commits
        self.policy = parts.quotas.policy
        self.on_collected: Callable[[CollectReport], None] = lambda report: None
        self.on_rebuilt: Callable[[], None] = lambda: None

    # -- scrub, repair, collect, rebuild -----------------------------------------------------------

    @property
    def documents(self) -> Catalog:
        """The catalog, where a server stores small documents of its own (``document`` and ``save_document``)."""
        return self._catalog

    def usages(self) -> list[Usage]:
        """What the files of each user take."""
        self._parts.check_open()
        return self._catalog.usages()

    def uncommitted(self, user_id: str) -> int:
        """The bytes on volumes that a user's uploads have written and not committed."""
        return self._parts.quotas.uncommitted(user_key(user_id.encode()))

    def destroy_keys(self, user_id: str) -> int:
        """Destroy the keys of a user who stores nothing any more; see ``UserKeyStore.destroy``.

        Raises:
            InvalidArgument: the user has files.
        """
        self._parts.check_writable()
        user = user_key(user_id.encode())
        files = self._catalog.usage(user).files
        if files or self._catalog.names(user, b"", None, 1) or self.uncommitted(user_id):
            raise InvalidArgument(
                f"user {user_id} has {files:,} files, or uploads that go on, which could never be read again: remove "
                "them first"
            )
        return self.keys.destroy(user_id)

    def shred(self) -> ShredReport:
        """See :meth:`storage.FileStorage.shred`."""
        self._parts.check_writable()
        if not self.keys.seals:
            raise InvalidArgument("the store does not encrypt: what was deleted from it can be read on old disks")
        return self.keys.shred(
            lambda key_ids: living_secrets(self._catalog, key_ids), self._commits.paused, self._lineage.check_current
        )

    def encrypt_head(self, file_id: str, user_id: str) -> None:
        """Give a file whose head is not encrypted a new version that is, with the same content, note and attributes.

        It is stored even if the owner takes more than the quota then, as it is not the owner who wants it.

        Raises:
            ConflictError: somebody else changed the file meanwhile.
            FileNotFound, VersionNotFound: the file is gone.
            StorageError: it cannot be read, or nothing can be stored now.
        """
        head = self._parts.files.version(file_id, user_id, None).public()
        same = ManifestDiff(head.version_id, head.size, head.chunk_size, ())
        options = PushOptions(
            "",
            user_id,
            time_ms=head.time_ms,
            note=head.note,
            sha256=head.sha256,
            attributes=head.attributes or None,
        )
        self._parts.revise(file_id, same, options, may_exceed_quota=True)

    def replace_content(self, head: Version, content: bytes) -> None:
        """Give a file a new version with other content, if ``head`` is its newest one; notes and attributes stay.

        It is stored even if the owner takes more than the quota then; see :meth:`encrypt_head`.

        Raises:
            ConflictError: somebody else changed the file meanwhile.
            FileNotFound: the file is gone.
            StorageError: nothing can be stored now.
        """
        parts = self._parts
        parts.check_writable()
        options = PushOptions(
            head.filename,
            head.user_id,
            note=head.note,
            attributes=head.attributes or None,
            if_head=head.version_id,
        )
        target = replace(parts.push_target(options), may_exceed_quota=True)
        with Upload(parts.pushing, target) as upload:
            upload.write(content)
            upload.commit()

    def drop_plain(self, is_of: Callable[[str], bool], pace: Callable[[float], None]) -> int:
        """Delete the versions that are not encrypted of files whose heads are; return how many there were.

        What only they reached is freed by the next collect.

        Args:
            is_of: whether this is about files of a user.
            pace: called with the seconds that each step took; may sleep, to leave resources for others, or raise.
        """
        self._parts.check_writable()
        dropped, clock_s = 0, self._parts.runtime.monotonic_s
        for doomed in batched(plain_versions_below_sealed_heads(self._catalog, is_of), _DROPPED_TOGETHER):
            began_s = clock_s()
            dropped += self._commits.delete_former(doomed)
            self._parts.forget([one.file_id for one in doomed])
            pace(clock_s() - began_s)
        return dropped

    def beside(self, user_id: str) -> int:
        """The bytes on volumes that a user takes with other than the user's own files."""
        return self.policy.beside(user_id)

    def require_room(self, user_id: str, count: int) -> None:
        """Check whether a user may take so many bytes more with other than the user's own files.

        Raises:
            QuotaExceeded: it is too much.
        """
        self._parts.quotas.require_room(user_id, count)

    def scrub(self, progress: Progress | None) -> ScrubReport:
        """See :meth:`storage.FileStorage.scrub`."""
        self._parts.check_open()
        self._volumes.check_present()
        report = scrub(self._parts.maintenance, progress)
        if not self._lineage.behind:
            self._lineage.restore_marks()
            self.keys.spread()
        return report

    def repair(
        self, progress: Progress | None, pace: Callable[[float], None] | None, watch: Watch | None
    ) -> RepairReport:
        """See :meth:`storage.FileStorage.repair`."""
        self._parts.check_open()
        self._volumes.check_present(at_once=True)
        self._volumes.reattach()
        if not self._lineage.behind:
            self._commits.write_pending_tombstones()
        waiting = set(self._volumes.incomplete)
        report = repair(self._parts.maintenance, progress, pace, watch)
        if self._lineage.behind:
            self._volumes.incomplete |= waiting  # they may lack objects that this catalog does not know
        else:
            self._lineage.plant(waiting - self._volumes.incomplete, anew=True)
            self.keys.spread()
        self.save_incomplete()
        return report

    def collect(self, progress: Progress | None, grace_s: float, pace: Callable[[float], None] | None) -> CollectReport:
        """See :meth:`storage.FileStorage.collect`."""
        self._parts.check_open()
        with self._catalog.freeing():
            self._lineage.check_current()
            self._lineage.renew_witnessed()
            report = collect(self._parts.maintenance, grace_s, progress, pace)
        self.on_collected(report)
        return report

    def rebuild(self, progress: Progress | None) -> RebuildReport:
        """See :meth:`storage.FileStorage.rebuild`."""
        parts = self._parts
        parts.check_usable()
        self._volumes.check_present(at_once=True)
        if not parts.needs_rebuild and not self._lineage.behind:
            raise InvalidArgument(
                "the catalog is up to date, so there is nothing to rebuild"
                if self._volumes.remote
                else f"the catalog of {parts.path} is up to date, so there is nothing to rebuild; to make it anew from "
                "the volumes anyway, close the store and move its directory 'catalog' away first"
            )
        self._lineage.recover()
        self.keys.recover()
        clock_s = parts.runtime.monotonic_s
        liars_max = parts.profile.n - parts.profile.k if self._volumes.remote else 0
        report = rebuild(
            self._catalog, parts.stripes, parts.settings.n, self.keys, self._belief(), liars_max, clock_s, progress
        )
        if report.undecided:
            self._lineage.left_unfinished(report.undecided)  # first: without settings, a rebuild is needed anyway
        self._catalog.save_settings(parts.settings)
        if not report.undecided:
            self._lineage.rebuilt()
            self.keys.spread()
        parts.needs_rebuild = False
        self.save_incomplete()
        self.on_rebuilt()
        return report

    def _belief(self) -> Belief:
        """Decides which objects a rebuild accepts from the stores."""
        profile = self._parts.profile
        # Stores that are away count as well; otherwise the few available ones could agree on anything.
        owners = {slot: self._volumes.owner(slot) for slot in self._volumes.slots}
        voice_of = voices(owners, profile.n - profile.k + 1)
        quorum = agreement_quorum(profile, len({*voice_of.values()})) if self._volumes.remote else 1
        return Belief(self._parts.authority, Agreement(quorum, self._parts.maintenance.scratch, voice_of))

    # -- what is due -------------------------------------------------------------------------------

    def stores_away(self) -> list[str] | None:
        """The names of offline stores, for which a collect should wait; None if no store is online at all."""
        if not self._volumes.online():
            return None
        return [self._volumes.name(slot) for slot in self._volumes.away()]

    def is_collect_owed(self) -> bool:
        """Whether an online store missed recent collects, so that it still holds shards to be freed.

        No collect sweeps stores that are not trusted, so these count again only once they are trusted.
        """
        self._parts.check_open()
        missed = missed_stores(self._catalog, self._volumes.slots)
        return any(slot in missed and self._volumes.trusts(slot) for slot, _ in self._volumes.online())

    def is_collect_worthwhile(self) -> bool:
        """Whether much could be freed: a tenth of what files take, and 64 MiB or more, or what a user's quota lacks.

        What was left before the store was opened is not known.
        """
        self._parts.check_open()
        return self._parts.quotas.is_collect_worthwhile(self._stored_bytes)

    def is_collect_pressing(self) -> bool:
        """Whether as much could be freed as all files take: somebody may be filling the volumes."""
        self._parts.check_open()
        return self._parts.quotas.is_collect_pressing(self._stored_bytes)

    def _stored_bytes(self) -> int:
        """About how many bytes the volumes hold together, whatever a few of them may say."""
        used: list[int] = []
        for slot, volume in self._volumes.online():
            with self._volumes.guard(slot, volume):
                used.append(volume.usage().bytes_used)
        return len(used) * int(median_low(used)) if used else 0

    def read_back(self) -> ReadBack:
        """A new :class:`ReadBack` for this store."""
        maintenance = self._parts.maintenance
        return ReadBack(self._parts.stripes, maintenance.collecting.locked, maintenance.runtime.token_bytes)

    def any_stripe(self, near: bytes) -> StripeKey | None:
        """The stripe of the first chunk at or after this id, or else of the very first; None if there are no chunks."""
        found = next(self._catalog.holdings(near), None) or next(self._catalog.holdings(), None)
        return None if found is None else found.stripe

    # -- stores that join, leave and come back -----------------------------------------------------

    def meet(self, slot: int | None, volume: ShardStore, name: str, owner: str = "") -> bool:
        """Compare a store with the catalog before it is used; see :class:`~storage.write.lineage.Lineage`.

        Args:
            slot: slot of the store; None if it is new.
            volume: the store.
            name: name of the worker that offers it.
            owner: owner of that worker; "" if unknown.

        Returns:
            Whether it is an older copy, which lacks shards that it should have.

        Raises:
            StorageError: it could not be asked.
        """
        if self._parts.needs_rebuild:
            return False
        stale = self._lineage.meet(slot, volume, name, owner)
        if not self._lineage.behind:
            # Tombstones wait for the next repair: now, they would go to stand-ins for stores that join later.
            self._commits.catch_up(self._lineage.latest_shown)
        return stale

    def meet_all(self) -> None:
        """Compare all volumes with the catalog, and save the findings if that is possible now."""
        if self._parts.needs_rebuild:
            return
        self._lineage.meet_all()
        try:
            self.save_incomplete()
            if not self._lineage.behind:
                self._commits.catch_up(self._lineage.latest_shown)
                self._commits.write_pending_tombstones()
                self.keys.spread()
        except (StoreUnavailable, StoreFull) as error:
            log.warning("the store at %s can only be read for now: %s", self._parts.path, error)

    def meet_again(self, slot: int) -> None:
        """Compare a volume that came back while the store was open, as it may have been replaced by a copy."""
        if not self._parts.needs_rebuild:
            self._lineage.meet_again(slot)
            if not self._lineage.behind:
                self.keys.spread([slot])

    def mark(self, slot: int, *, anew: bool = False) -> None:
        """Mark a store that is now used, unless it has a mark; ``anew`` replaces the mark. See :class:`Lineage`."""
        if not self._parts.needs_rebuild and not self._lineage.behind:
            self._lineage.plant([slot], anew=anew)
            self.keys.spread([slot])  # repairs and scrubs look at the others

    def save_incomplete(self) -> None:
        """Save in the catalog which stores wait for repair; for fleets whose stores come and go."""
        try:
            kept = self._catalog.settings()
        except DamagedSettings:
            kept = None  # they were restored when the store was opened
        if kept is None:
            self._catalog.save_settings(with_incomplete(self._parts.settings, self._volumes.incomplete))
        elif kept.incomplete != sorted(self._volumes.incomplete):
            # The transaction compares again: a commit may have just added a store, which must stay.
            self._catalog.transact(lambda txn: txn.keep_incomplete(self._volumes.incomplete))

    # -- time, and the end -------------------------------------------------------------------------

    def keep_time(self) -> None:
        """Save in the catalog how long the store has been open, since interrupted pushes lapse by that time. Cheap."""
        try:
            self._parts.uploads.keep()
        except StoreFull:
            log.warning("no space to save how long the store has been open")

    @checked
    def keep_interrupted(self, resume_s: float) -> None:
        """Let remote senders resume the pushes that were interrupted when the store last closed or crashed.

        Args:
            resume_s: for this many seconds after opening, no collect frees the chunks of these pushes, whatever its
                grace time.
        """
        self._parts.uploads.resume_s = resume_s

    def end(self) -> None:
        """Save the state for the next opening. Called after everything else has ended."""
        if self._parts.needs_rebuild:
            return
        try:
            self.save_incomplete()
            self.keep_time()
        except (StoreUnavailable, StoreFull) as error:
            log.warning("the volumes of %s that wait for repair could not be recorded: %s", self._parts.path, error)
        self._lineage.end(self._commits.sequence)
