"""Name resolution for running functions."""

from __future__ import annotations

from collections.abc import Callable

from storage.errors import PermissionDenied
from taskworker.outbound.dns.names import Names, parse_kind, parse_name, shown
from taskworker.outbound.dns.resolver import is_internal

MayResolve = Callable[[str, str], bool]
"""Whether a function may resolve an outside name, given in lower case without a trailing dot."""


class NamesOfCall:
    """Resolves names for one call: those of the pool's zone, and those that its function may resolve.

    Args:
        names: resolves names.
        function: the call's function.
        may_resolve: tells which outside names it may resolve.
        timeout_s: seconds to wait for an answer at most; None: as long as it takes.
    """

    def __init__(self, names: Names, function: str, may_resolve: MayResolve, timeout_s: float | None = None) -> None:
        self._timeout_s = timeout_s
        self._names = names
        self._function = function
        self._may_resolve = may_resolve

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``taskworker.calls.capabilities.Capabilities``.

        Raises:
            PermissionDenied: the function may not resolve the name, whether or not it exists.
            DeadlineExceeded: there was no answer in time.
        """
        asked = parse_name(name, parse_kind(kind))
        host = shown(asked).lower()
        if not is_internal(asked) and not self._may_resolve(self._function, host):
            raise PermissionDenied(
                f"function {self._function} may not resolve {host}; "
                f"`taskworker egress allow {self._function} {host}` allows it"
            )
        return list(self._names.resolve(name, kind, timeout_s=self._timeout_s).records)
