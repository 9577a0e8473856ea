"""Who is signed in: sessions, which live in this process's memory, and codes that start one."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from storage.clocks import monotonic_s
from taskworker.auth.rights import Principal
from taskworker.gateways.page.acting import Acting

IDLE_S = 3600.0
"""How long a session lasts in which nobody does anything. Transfers count; live updates of an open window do not."""
LASTING_S = 12 * 3600.0
"""How long any session lasts."""
CODE_S = 120.0
"""How long a sign-in link can be used."""
SESSIONS_MAX = 500
SESSIONS_EACH_MAX = 20
"""Sessions of one user; of more, those that were used longest ago end."""
_CODES_MAX = 200
_NOTICES_MAX = 8
_RANDOM_BYTES = 32


class Notice(NamedTuple):
    """What came of an action, to be shown once.

    Attributes:
        text: one sentence.
        is_problem: whether the action failed.
        detail: more lines, such as the result of a call; empty: none.
        secret: what is shown this once only, such as a new token; empty: nothing.
    """

    text: str
    is_problem: bool = False
    detail: str = ""
    secret: str = ""


@dataclass(eq=False, slots=True)
class Session:
    """Somebody who is signed in.

    Attributes:
        acting: what shows the person's token.
        principal: who it is, as the server said last.
        csrf: what forms of this session have in them.
        notices: what was not shown yet.
        streams: how many windows get live updates.
        uses: how many files are being sent or fetched, and calls made: as long as there are any, it is in use.
    """

    acting: Acting
    principal: Principal
    began_s: float
    used_s: float
    key: bytes
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(_RANDOM_BYTES))
    notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=_NOTICES_MAX))
    streams: int = 0
    uses: int = 0

    def take_notices(self) -> list[Notice]:
        """What was not shown yet, which then counts as shown."""
        taken = []
        while self.notices:
            taken.append(self.notices.popleft())
        return taken


class Sessions:
    """The sessions of a page. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._sessions: dict[bytes, Session] = {}

    def begin(self, acting: Acting, principal: Principal) -> tuple[str, Session]:
        """Sign somebody in; return what the browser shows from now on, and the session."""
        text = secrets.token_urlsafe(_RANDOM_BYTES)
        now_s = self._clock_s()
        session = Session(acting, principal, now_s, now_s, _key_of(text))
        with self._lock:
            ending = self._overdue(now_s)
            own = [one for one in self._sessions.values() if one.principal.user == principal.user and one not in ending]
            others = [one for one in self._sessions.values() if one not in ending]
            for some, most in ((own, SESSIONS_EACH_MAX), (others, SESSIONS_MAX)):
                some.sort(key=lambda one: one.used_s)
                ending += [one for one in some[: max(0, len(some) - most + 1)] if one not in ending]
            self._drop(ending)
            self._sessions[session.key] = session
        _close(ending)
        return text, session

    def find(self, text: str, *, is_use: bool = True) -> Session | None:
        """The session that a browser shows; None: there is none, or it has ended.

        Args:
            text: what the browser shows.
            is_use: whether a person did something, so that the session goes on.
        """
        now_s = self._clock_s()
        with self._lock:
            ending = self._overdue(now_s)
            self._drop(ending)
            found = self._sessions.get(_key_of(text))
            if found is not None and is_use:
                found.used_s = now_s
        _close(ending)
        return found

    @contextlib.contextmanager
    def used(self, session: Session) -> Iterator[None]:
        """Count a session as used from the beginning to the end of what takes long."""
        with self._lock:
            session.uses += 1
        try:
            yield
        finally:
            with self._lock:
                session.uses -= 1
                session.used_s = self._clock_s()

    def is_on(self, session: Session) -> bool:
        """Whether a session has not ended."""
        now_s = self._clock_s()
        with self._lock:
            return self._sessions.get(session.key) is session and not _is_over(session, now_s)

    def end(self, session: Session) -> None:
        """Sign somebody out."""
        with self._lock:
            self._drop([session])
        _close([session])

    def end_all(self) -> None:
        """Sign everybody out."""
        with self._lock:
            ending = list(self._sessions.values())
            self._drop(ending)
        _close(ending)

    def _overdue(self, now_s: float) -> list[Session]:
        return [one for one in self._sessions.values() if _is_over(one, now_s)]

    def _drop(self, sessions: list[Session]) -> None:
        for session in sessions:
            self._sessions.pop(session.key, None)


class SignInCodes:
    """Codes, each of which signs one person in once, within a short time. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._codes: dict[bytes, tuple[str, str, float]] = {}

    def make(self, token: str, user: str) -> str:
        """A code that signs in who has this token."""
        code = secrets.token_urlsafe(_RANDOM_BYTES)
        with self._lock:
            self._drop_overdue()
            while len(self._codes) >= _CODES_MAX:
                del self._codes[next(iter(self._codes))]
            self._codes[_key_of(code)] = token, user, self._clock_s() + CODE_S
        return code

    def user_of(self, code: str) -> str | None:
        """Whom a code signs in; None: nobody, or nobody any more."""
        with self._lock:
            self._drop_overdue()
            found = self._codes.get(_key_of(code))
        return None if found is None else found[1]

    def redeem(self, code: str) -> str | None:
        """The token that a code stands for, which it does no more; None: it stands for none."""
        with self._lock:
            self._drop_overdue()
            found = self._codes.pop(_key_of(code), None)
        return None if found is None else found[0]

    def _drop_overdue(self) -> None:
        now_s = self._clock_s()
        for key in [key for key, (_, _, until_s) in self._codes.items() if until_s <= now_s]:
            del self._codes[key]


def _is_over(session: Session, now_s: float) -> bool:
    is_idle = not session.uses and now_s - session.used_s >= IDLE_S
    return is_idle or now_s - session.began_s >= LASTING_S


def _key_of(text: str) -> bytes:
    """What is kept of a text, which is of no use to who learns of it."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def _close(sessions: list[Session]) -> None:
    for session in sessions:
        session.acting.close()
