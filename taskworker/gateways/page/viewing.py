"""Views: what a page shows, and which parts of it are kept up to date. Actions: what people can do on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from markupsafe import Markup

from taskworker.auth.rights import Principal, Right
from taskworker.gateways.page.acting import Acting
from taskworker.gateways.page.history import History
from taskworker.gateways.page.rendering import Rendering
from taskworker.gateways.page.sessions import Notice

EVERY_S = 2.0
_DIGEST_BYTES = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asks for.

    Attributes:
        acting: acts for the person.
        principal: who it is.
        fields: the URL's parameters, or those of a form.
        history: figures of the past.
        csrf: what forms must have in them.
        now_ms: milliseconds since 1970.
    """

    acting: Acting
    principal: Principal
    fields: Mapping[str, str]
    history: History
    csrf: str
    now_ms: int

    @property
    def owner(self) -> str:
        """Whose files this is about: by default, the person's own."""
        return self.fields.get("owner") or self.principal.user

    def field(self, name: str) -> str:
        """A field; empty if it is missing."""
        return self.fields.get(name, "").strip()


@dataclass(frozen=True, slots=True)
class View:
    """A page with some parts that are kept up to date while it is open.

    Attributes:
        path: where it is.
        title: its name.
        template: of the page.
        regions: names of the parts, each of which has a template.
        load: returns what the templates show. It asks the server, so it may take a while, and raise StorageError.
        section: the entry of the menu that it belongs to.
        right: what one needs so that the menu has the entry; the server decides who sees what.
        every_s: how often it is brought up to date, in seconds.
        is_live: whether it is brought up to date at all, for what was asked.
    """

    path: str
    title: str
    template: str
    regions: tuple[str, ...]
    load: Callable[[Asked], dict[str, Any]]
    section: str
    right: Right | None = None
    every_s: float = EVERY_S
    is_live: Callable[[Asked], bool] = lambda _asked: True


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an action: where to go, and what to say there."""

    to: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a person can do.

    Attributes:
        path: where its form is sent.
        work: does it; asks the server, and may raise StorageError.
        is_long: whether it may take long, so that only so many are done at the same time.
    """

    path: str
    work: Callable[[Asked], Done]
    is_long: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a page as it is now."""

    name: str
    html: str

    @property
    def digest(self) -> str:
        """Differs if the part has changed."""
        return blake2b(self.html.encode(), digest_size=_DIGEST_BYTES).hexdigest()

    @property
    def element(self) -> Markup:
        """The part, to be put into a page."""
        return Markup('<div id="region-{}" data-region data-digest="{}">{}</div>').format(
            self.name, self.digest, Markup(self.html)
        )


def regions_of(view: View, asked: Asked, rendering: Rendering) -> tuple[dict[str, Any], list[Region]]:
    """What a view shows now, and its parts."""
    csrf = Markup('<input type="hidden" name="csrf" value="{}">').format(asked.csrf)
    values = {**view.load(asked), "principal": asked.principal, "owner": asked.owner, "csrf": csrf}
    return values, [Region(name, rendering(f"regions/{name}.html", **values)) for name in view.regions]
