"""Templates, and how values look in them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from storage.clocks import wall_ms
from taskworker.readable import duration_text, plural, size_text

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d")
_RECENT_S = 10.0
_DAY_S = 86400.0


class Rendering:
    """Renders the page's templates. Thread-safe.

    Args:
        now_ms: milliseconds since 1970.
    """

    def __init__(self, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._environment = Environment(
            loader=PackageLoader("taskworker.gateways.page"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            name=name_shown,
            lines=lines_shown,
            size=_size,
            plural=plural,
            when=self.when,
            ago=self.ago,
            share=lambda share: f"{share:.1%}",
            number=lambda number: f"{number:,}",
            latency=_latency,
        )
        self._environment.globals.update(url=url, ago=self.ago, is_past=self.is_past)
        for template in self._environment.list_templates(extensions=["html"]):
            self._environment.get_template(template)  # now, as an upgrade may replace the files while this runs

    def __call__(self, template: str, /, **values: Any) -> str:
        """A template with these values."""
        return self._environment.get_template(template).render(values)

    def when(self, time_ms: int | None) -> Markup:
        """A time: how long ago, or the date, with the exact time to machines and to who points at it."""
        if not time_ms:
            return Markup("never")
        try:
            at = datetime.fromtimestamp(time_ms / 1000, UTC)
        except (OverflowError, OSError, ValueError):  # of an author's clock
            return Markup(escape(f"{time_ms} ms"))
        exact = at.strftime("%Y-%m-%d %H:%M:%S UTC")
        past_s = (self._now_ms() - time_ms) / 1000
        shown = self.ago(time_ms) if 0 <= past_s < _DAY_S else at.strftime("%Y-%m-%d %H:%M")
        return Markup('<time datetime="{}" title="{}">{}</time>').format(
            at.strftime("%Y-%m-%dT%H:%M:%SZ"), exact, shown
        )

    def is_past(self, time_ms: int | None) -> bool:
        """Whether a time is over; None never is."""
        return time_ms is not None and time_ms <= self._now_ms()

    def ago(self, time_ms: int) -> str:
        """How long ago a time was."""
        past_s = (self._now_ms() - time_ms) / 1000
        return "just now" if past_s < _RECENT_S else f"{duration_text(past_s)} ago"


def name_shown(name: str) -> Markup:
    """A name in which characters that cannot be seen, or change how others look, are shown by their numbers."""
    return Markup("<bdi>{}</bdi>").format(_revealed(name))


def lines_shown(text: str) -> Markup:
    """Lines of a text, likewise."""
    return _revealed(text.replace("\r\n", "\n"), kept="\n\t")


def _revealed(text: str, kept: str = "") -> Markup:
    if text.isascii() and text.isprintable():
        return escape(text)
    parts = [
        escape(one)
        if one in kept or one in _JOINERS or unicodedata.category(one) not in _HIDDEN
        else Markup('<span class="hidden-character">U+{}</span>').format(f"{ord(one):04X}")
        for one in text
    ]
    return Markup().join(parts)


def url(path: str, **parameters: str | int | None) -> str:
    """A URL of the page: a path whose parts may be any text, and the parameters that are not empty."""
    query = urlencode({name: value for name, value in parameters.items() if value not in (None, "")})
    return quote(path) + (f"?{query}" if query else "")


def _size(count: int) -> Markup:
    return Markup('<span class="figure" title="{}">{}</span>').format(f"{count:,} bytes", size_text(count))


def _latency(milliseconds: float) -> str:
    """How long calls took; 0: there were none."""
    if not milliseconds:
        return "\u2013"
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
