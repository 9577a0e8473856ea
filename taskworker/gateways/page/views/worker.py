"""A worker, and what operators can do with it: drain it, and forget it."""

from __future__ import annotations

from typing import Any

from storage.errors import InvalidArgument
from taskworker.auth.rights import Right
from taskworker.gateways.page.rendering import url
from taskworker.gateways.page.sessions import Notice
from taskworker.gateways.page.viewing import Action, Asked, Done, View
from taskworker.readable import one_line


def load(asked: Asked) -> dict[str, Any]:
    """What the page of a worker shows."""
    status = asked.acting.pool().status()
    name = asked.field("id")
    found = next((one for one in status.workers if one.worker_id == name), None) if status is not None else None
    if status is None or found is None:
        raise InvalidArgument(f"there is no worker {name!r}; it may have been forgotten")
    return {
        "worker": found,
        "events": [one for one in reversed(status.events) if name in one.text][:20],
        "may_operate": asked.principal.has(Right.OPERATE),
    }


def drain(asked: Asked) -> Done:
    """Move a worker's shards to the others."""
    name = asked.field("id")
    moved = asked.acting.pool().drain(name)
    return _done(name, f"{name} is being drained: {moved:.1%} of all shards move to other workers")


def keep(asked: Asked) -> Done:
    """Drain a worker no longer."""
    name = asked.field("id")
    asked.acting.pool().drain(name, cancel=True)
    return _done(name, f"{name} is no longer being drained")


def forget(asked: Asked) -> Done:
    """Remove a worker that is gone for good."""
    name = asked.field("id")
    asked.acting.pool().forget(name)
    return Done("/", Notice(one_line(f"{name} is forgotten; its shards are rebuilt on the other workers")))


def _done(name: str, text: str) -> Done:
    return Done(url("/worker", id=name), Notice(one_line(text)))


VIEWS = (View("/worker", "Worker", "worker.html", ("worker",), load, "overview"),)
ACTIONS = (Action("/worker/drain", drain), Action("/worker/keep", keep), Action("/worker/forget", forget))
