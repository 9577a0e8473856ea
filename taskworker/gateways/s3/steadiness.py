"""Whether a bucket has versions, and locks of them, does not change in this gateway while somebody counts on it.

Whoever deletes files with all of their versions holds the bucket steady, together with others who do; whoever changes
the settings that this goes by, or removes the bucket, waits for them and is alone with it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Users:
    """Those who use a bucket, or wait for that: how many there are, how many hold it steady, how many want it alone."""

    count: int = 0
    steady: int = 0
    waiting: int = 0
    is_alone: bool = False


_changed = threading.Condition()
_users: dict[tuple[str, str], _Users] = {}


@contextlib.contextmanager
def steady(user: str, bucket: str) -> Iterator[None]:
    """Keep others from changing the settings of a bucket. Not to be nested, as those who wait for it come first."""
    with _using(user, bucket) as users:
        with _changed:
            _changed.wait_for(lambda: not users.is_alone and not users.waiting)
            users.steady += 1
        try:
            yield
        finally:
            with _changed:
                users.steady -= 1
                _changed.notify_all()


@contextlib.contextmanager
def alone(user: str, bucket: str) -> Iterator[None]:
    """Be the only one who changes the settings of a bucket, while nobody holds it steady. Not to be nested."""
    with _using(user, bucket) as users:
        with _changed:
            users.waiting += 1
            try:
                _changed.wait_for(lambda: not users.is_alone and not users.steady)
                users.is_alone = True
            finally:
                users.waiting -= 1
                _changed.notify_all()
        try:
            yield
        finally:
            with _changed:
                users.is_alone = False
                _changed.notify_all()


@contextlib.contextmanager
def _using(user: str, bucket: str) -> Iterator[_Users]:
    """What is known of a bucket's users; it is forgotten when there is none left."""
    which = (user, bucket)
    with _changed:
        users = _users.setdefault(which, _Users())
        users.count += 1
    try:
        yield users
    finally:
        with _changed:
            users.count -= 1
            if not users.count:
                del _users[which]
