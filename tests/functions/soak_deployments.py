"""Deployments for the soak: of versions that replace each other, fail, are only tried, or do not stay."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from taskworker.calls.bundle import packed
from taskworker.calls.spec import FunctionSpec
from tests.functions.processes import USER, WAIT_S, FunctionPool
from tests.functions.soaked import BROKEN, KEPT_S, VERSIONED

UNDER_WAY_MAX = 3
"""At once: a pool refuses further ones of one user as long as those are under way."""


def _in_turn(act: Callable[[Deployments, random.Random], None]) -> Callable[[Deployments, random.Random], None]:
    """Wait while as many are under way as a user may have."""

    def acting(self: Deployments, chance: random.Random) -> None:
        with self.places:
            act(self, chance)

    return acting


class Deployments:
    """Deployments into a pool, several at once.

    Args:
        pool: whose directory has the module ``app``.
    """

    def __init__(self, pool: FunctionPool) -> None:
        self._pool = pool
        self.places = threading.BoundedSemaphore(UNDER_WAY_MAX)
        self._lock = threading.Lock()
        self._words = [""]
        self._count = 0
        for _ in range(2):  # so that one can be gone back to
            self.another(random.Random(0))

    @_in_turn
    def another(self, chance: random.Random) -> None:
        """A version that replaces the one before, in whose place it is called."""
        with self._lock:
            word = f"word {len(self._words)}"
            self._words.append(word)
        options = {"process_s": KEPT_S} | {"isolation": chance.choice(["call", "user"])}
        self._pool.deploy(VERSIONED, f"app:{VERSIONED}", self._pool.directory, config={"word": word}, **options)
        if chance.random() < 0.5:  # else it is only tried, unless another one is called for it
            self.require_deployed(USER)

    @_in_turn
    def back(self, _chance: random.Random) -> None:
        """The version before, again."""
        self._pool.functions.roll_back(VERSIONED, user_id=USER)
        self.require_deployed(USER)

    @_in_turn
    def dry(self, chance: random.Random) -> None:
        """Something that is only tried: another version, or a function that there is not."""
        word = f"word never deployed {chance.getrandbits(40)}"
        name = chance.choice([VERSIONED, self._new_name()])
        spec = FunctionSpec(name=name, entry="app:f", config={"word": word})
        found = self._pool.functions.deploy(_bundle(spec, "def f():\n    return 0\n"), user_id=USER, dry_run=True)
        assert found.imported_by, f"{name} was imported by no worker: {found.not_imported}"
        self.require_deployed(USER)

    @_in_turn
    def broken(self, chance: random.Random) -> None:
        """A version that cannot be imported, and so does not go live."""
        name = chance.choice([VERSIONED, self._new_name()])
        source = BROKEN[chance.choice(sorted(BROKEN))]
        try:
            self._pool.functions.deploy(_bundle(FunctionSpec(name=name, entry="app:f"), source), user_id=USER)
        finally:
            self.require_deployed(USER)

    @_in_turn
    def passing(self, chance: random.Random) -> None:
        """A function that is deleted, which it may have been called before."""
        name = self._new_name()
        self._pool.functions.deploy(
            _bundle(FunctionSpec(name=name, entry="app:f"), f"def f():\n    return {name!r}\n"), user_id=USER
        )
        if chance.random() < 0.5:
            told = self._pool.client.call(name, user_id=USER, timeout_s=WAIT_S)
            assert told == name, f"{name} answered {told!r}"
        self._pool.functions.undeploy(name)
        self._pool.client.call(name, user_id=USER, timeout_s=WAIT_S)

    def require_deployed(self, user: str) -> None:
        """What is called is something that was deployed, for who calls it."""
        word, served = self._pool.client.call(VERSIONED, user_id=user, timeout_s=WAIT_S)
        with self._lock:
            known = word in self._words
        assert known, f"a version with {word!r} was called, which was not deployed"
        assert served == user, f"a call of {user} was one of {served}"

    def _new_name(self) -> str:
        with self._lock:
            self._count += 1
            return f"passing-{self._count}"


def _bundle(spec: FunctionSpec, source: str) -> bytes:
    return packed(spec, {"app/app.py": source.encode()}).bundle
