"""Names as a function under way may resolve them."""

from __future__ import annotations

from collections.abc import Callable

from storage.errors import PermissionDenied
from taskworker.outbound.dns.names import Names, parse_kind, parse_name, shown
from taskworker.outbound.dns.resolver import is_internal

MayResolve = Callable[[str, str], bool]
"""Whether a function, by name, may resolve a name of the world outside, in lower case without a dot at its end."""


class NamesOfCall:
    """Resolves for one call: the pool's own names, and those that its function may.

    Args:
        names: who resolves.
        function: of the call.
        may_resolve: what it may.
    """

    def __init__(self, names: Names, function: str, may_resolve: MayResolve) -> None:
        self._names = names
        self._function = function
        self._may_resolve = may_resolve

    def resolve(self, name: str, kind: str) -> list[str]:
        """As ``taskworker.calls.capabilities.Capabilities.resolve``.

        Raises:
            PermissionDenied: the function may not, whether or not the name exists.
        """
        asked = parse_name(name, parse_kind(kind))
        host = shown(asked).lower()
        if not is_internal(asked) and not self._may_resolve(self._function, host):
            raise PermissionDenied(
                f"function {self._function} may not resolve {host}; "
                f"`taskworker egress allow {self._function} {host}` lets it"
            )
        return list(self._names.resolve(name, kind).records)
