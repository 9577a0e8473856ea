"""Applies the lifecycle rules of all buckets: one pass after another, in the background of a gateway.

A pass keeps nothing of its own. It reads a few hundred versions at a time, and each deletion is one step of the store
that is made only if what it was decided on is still so. So a pass can be killed anywhere, several gateways can make
passes at once, and the next pass does what is left. Users take turns, so that one with many versions delays no others.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial

from storage.clocks import wall_ms
from storage.errors import FileNotFound, PermissionDenied, StorageError
from taskworker.gateways.s3.accounts import Account, Accounts
from taskworker.gateways.s3.buckets import check_undamaged, read_settings
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.lifecycle_passes import BucketPass, Expired, pages_below
from taskworker.gateways.s3.lifecycle_rules import enabled
from taskworker.gateways.s3.names import OWN, PARTS, SETTINGS, is_bucket
from taskworker.gateways.s3.stray_parts import remove_stray_parts

_log = logging.getLogger(__name__)
INTERVAL_S = 3600.0
_FIRST_AFTER_S = 60.0
_SKEW_MAX_MS = 3_600_000
_TURN_STEPS = 50
"""After so many pages or buckets, the next user has a turn. Turns of the next round are twice as long."""
_WAITING_MAX = 100
"""Users who may wait for another turn; each holds a page. Further ones have one turn that is long enough."""
_CLOCK = f"{OWN}clock"


class _WrongClock(Exception):
    """Nothing can be said about how old something is."""


class Lifecycles:
    """Applies rules when it is told to.

    Args:
        accounts: whose buckets.
        now_ms: milliseconds since 1970.
        skew_max_ms: how far this clock may be from that of the pool, in milliseconds; beyond that, nothing expires.
    """

    def __init__(
        self, accounts: Accounts, *, now_ms: Callable[[], int] = wall_ms, skew_max_ms: int = _SKEW_MAX_MS
    ) -> None:
        self._accounts = accounts
        self._now_ms = now_ms
        self._skew_max_ms = skew_max_ms

    def apply(self, stopped: Callable[[], bool] = lambda: False) -> Expired:
        """Make a pass over all buckets; what cannot be done now is logged, and left to the next one.

        Args:
            stopped: whether to end before all is done.
        """
        told = Expired()
        clock = _Clock(self._now_ms, self._skew_max_ms)
        try:
            self._take_turns(clock, told, stopped)
        except _WrongClock as error:
            _log.error("lifecycle rules are not applied: %s", error)
        except StorageError as error:
            _log.warning("lifecycle rules were not applied to all buckets: %s", error)
        if told != Expired():
            _log.info(
                "lifecycle rules: %d objects expired; %d former versions, %d markers, %d uploads and %d parts deleted",
                *(told.objects, told.versions, told.markers, told.uploads, told.parts),
            )
        return told

    def _take_turns(self, clock: _Clock, told: Expired, stopped: Callable[[], bool]) -> None:
        waiting, steps = self._first_turns(clock, told, stopped), _TURN_STEPS
        while waiting and not stopped():
            steps *= 2  # each round looks up all access keys
            again: dict[str, _AccountPass] = {}
            for account in self._accounts.every(waiting.keys()):
                turn = waiting[account.access_key_id]
                if turn.go_on(account, steps):
                    again[account.access_key_id] = turn
                if stopped():
                    return
            waiting = again

    def _first_turns(self, clock: _Clock, told: Expired, stopped: Callable[[], bool]) -> dict[str, _AccountPass]:
        """Give each access key a turn, and return those that wait for another one."""
        waiting: dict[str, _AccountPass] = {}
        user, done = "", set[str]()
        for account in self._accounts.every():
            if account.user != user:
                user, done = account.user, set()
            turn = _AccountPass(account, done, clock, told, stopped)
            if turn.go_on(account, _TURN_STEPS if len(waiting) < _WAITING_MAX else None):
                waiting[account.access_key_id] = turn
            if stopped():
                break
        return waiting


class BackgroundLifecycles:
    """A thread that applies rules again and again.

    Args:
        lifecycles: applies them.
        interval_s: seconds between passes. The first one comes a minute after the start at the latest.
    """

    def __init__(self, lifecycles: Lifecycles, interval_s: float = INTERVAL_S) -> None:
        self._lifecycles = lifecycles
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lifecycle", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once the step that is under way is done."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait_s = min(self._interval_s, _FIRST_AFTER_S)
        while not self._stopped.wait(wait_s):
            try:
                self._lifecycles.apply(self._stopped.is_set)
            except Exception:
                _log.exception("lifecycle rules were not applied")
            wait_s = self._interval_s


class _Clock:
    """The gateway's clock, which is compared with that of the pool once it matters."""

    def __init__(self, now_ms: Callable[[], int], skew_max_ms: int) -> None:
        self._now_ms = now_ms
        self._skew_max_ms = skew_max_ms
        self._is_right = False
        self._failed = ""

    def now_ms(self, account: Account) -> int:
        """Milliseconds since 1970.

        Where it cannot be compared, it is taken as right: by rules, users make room who may store nothing any more.

        Raises:
            _WrongClock: it is too far from the pool's.
        """
        if not self._is_right and account.access_key_id != self._failed:
            self._failed = account.access_key_id
            try:
                self._compare(account)
            except StorageError as error:
                _log.info("the gateway's clock could not be compared with the pool's for %r: %s", account.user, error)
        return self._now_ms()

    def _compare(self, account: Account) -> None:
        """Compare it by a file that is stored, and removed again: what the pool takes has its time."""
        made = account.client.push(secrets.token_bytes(16), user_id=account.user, filename=_CLOCK)
        ahead_ms = self._now_ms() - made.sequence // 1000
        if abs(ahead_ms) <= self._skew_max_ms:
            self._is_right = True
        with contextlib.suppress(FileNotFound):  # another gateway was faster
            account.client.delete(made.file_id, user_id=account.user)
        if not self._is_right:
            raise _WrongClock(
                f"this gateway's clock is {abs(ahead_ms) // 60_000} minutes {'ahead of' if ahead_ms > 0 else 'behind'} "
                "the pool's; set them right"
            )


class _AccountPass:
    """Applies the rules of the buckets that an access key is for, but of those that the user's other keys have done."""

    def __init__(
        self, account: Account, done: set[str], clock: _Clock, told: Expired, stopped: Callable[[], bool]
    ) -> None:
        self._user = account.user
        self._done = done
        self._account = account
        self._clock = clock
        self._told = told
        self._stopped = stopped
        self._has_failed = False
        self._steps = self._all_steps()

    def go_on(self, account: Account, steps: int | None) -> bool:
        """Make so many steps, or all if None; return whether there may be more.

        Args:
            account: the same as before, but it may have another connection.
            steps: each is about a page.

        Raises:
            _WrongClock: nothing may be done.
        """
        self._account = account
        try:
            taken = sum(1 for _ in itertools.islice(self._steps, steps))
        except PermissionDenied:
            _log.debug("the access key %s may not read settings of buckets", account.access_key_id)
        except StorageError as error:
            _log.warning("lifecycle rules of %r were not applied to all buckets: %s", self._user, error)
        except _WrongClock:
            raise
        except Exception:
            _log.exception("lifecycle rules of %r were not applied to all buckets", self._user)
        else:
            return taken == steps
        return False

    def _all_steps(self) -> Iterator[None]:
        for heads in pages_below(self._by, SETTINGS):
            for name in (head.filename.removeprefix(SETTINGS) for head in heads):
                if self._stopped():
                    return
                if is_bucket(name) and name not in self._done:
                    yield from self._bucket_steps(name)
        if PARTS not in self._done:
            now_ms = partial(self._clock.now_ms, self._account)
            yield from remove_stray_parts(self._by, now_ms, self._told, self._stopped)
            self._done.add(PARTS)

    def _bucket_steps(self, name: str) -> Iterator[None]:
        """Of a bucket, which counts as done if it fails, but not if this key is not for it: another one may be."""
        try:
            kept = read_settings(self._account.client, self._user, name)
            rules = []
            if kept is not None:
                check_undamaged(kept[1], name)
                rules = enabled(kept[1].lifecycle)
            if kept is not None and rules:
                now_ms = self._clock.now_ms(self._account)
                yield from BucketPass(self._by, name, kept, rules, now_ms, self._told, self._stopped).steps()
        except PermissionDenied:
            return
        except (StorageError, S3Error) as error:
            _log.warning("lifecycle rules of bucket %r of %r were not applied: %s", name, self._user, error)
        except _WrongClock:
            raise
        except Exception:
            exc_info = not self._has_failed  # once, as a user may have many buckets of the kind
            _log.error("lifecycle rules of bucket %r of %r were not applied", name, self._user, exc_info=exc_info)
            self._has_failed = True
        self._done.add(name)
        yield

    def _by(self) -> Account:
        return self._account
