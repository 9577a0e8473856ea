"""What each function may reach through the pool: secrets, outside APIs, DNS names."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from storage.clocks import wall_ms
from taskworker.apps.pool_names import PoolDirectory
from taskworker.calls.call import Call
from taskworker.calls.capabilities import ApiRequest, ApiResponse, Capabilities
from taskworker.errors import SecretDamaged, SecretsUnavailable
from taskworker.outbound.dns.call import NamesOfCall
from taskworker.outbound.dns.names import DnsOptions, Names
from taskworker.outbound.egress.audit import AuditLog
from taskworker.outbound.egress.capability import EgressCapability
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.proxy import EgressProxy
from taskworker.outbound.egress.rules import RuleBook
from taskworker.outbound.secrets.calls import CallSecrets, RequestSecrets
from taskworker.outbound.secrets.master_key import KeyFile, MasterKeySource
from taskworker.outbound.secrets.store import Secrets
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.node_pool import NodePool

log = logging.getLogger(__name__)

MASTER_KEY = "master.key"
_AUDIT_LOG = "egress.log"


class PoolCapabilities:
    """Gives calls their capabilities, from :meth:`start` until :meth:`close`.

    Args:
        pool: the pool whose functions make the calls.
        functions: the pool's functions.
        directory: the pool's directory.
        master_key: path of the master key that secrets are sealed with; default: ``master.key`` in ``directory``.
        egress: limits on calls of outside APIs.
        dns: how to resolve names, and the address to serve them on.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.

    Raises:
        FormatError: the egress rules in the catalog cannot be read.
    """

    def __init__(
        self,
        pool: NodePool,
        functions: PoolFunctions,
        directory: str | os.PathLike[str],
        *,
        master_key: MasterKeySource | None,
        egress: EgressLimits,
        dns: DnsOptions | None,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._functions = functions
        self._address = ""
        self._rules = RuleBook(pool.documents)
        self.secrets = Secrets(pool.documents, master_key or KeyFile(Path(directory) / MASTER_KEY), now_ms, clock_s)
        self.egress = EgressProxy(
            self._rules,
            AuditLog(Path(directory) / _AUDIT_LOG),
            limits=egress,
            fill=RequestSecrets(self.secrets, functions.hosting.redactors.given_to).fill,
            clock_s=clock_s,
            now_ms=now_ms,
        )
        names = PoolDirectory(pool.pool_id, lambda: self._address, pool.membership, functions)
        self.names = Names(names, dns, clock_s=clock_s, now_ms=now_ms)

    def start(self) -> None:
        """Serve names over DNS.

        Raises:
            StorageUnavailable: the DNS address is taken.
        """
        self.names.start()

    def began(self, address: str) -> None:
        """Note that the pool serves at ``address``, and log the state of its secrets."""
        self._address = address
        try:
            self.secrets.check()
        except (SecretsUnavailable, SecretDamaged) as error:
            log.warning("%s", error)

    def of(self, call: Call, timeout_s: float | None) -> Capabilities:
        """The capabilities of one call, valid while the call runs.

        Args:
            call: the call.
            timeout_s: for how many seconds an answer is waited for; None: for as long as it takes.
        """
        return _CapabilitiesOfCall(
            CallSecrets(self.secrets, call, functools.partial(self._functions.hosting.redactors.given, call)),
            EgressCapability(self.egress, call, lambda: self._functions.hosting.call_of(call.token) is not None),
            NamesOfCall(self.names, call.function, self._rules.allows_host, timeout_s),
        )

    def ending(self, grace_s: float) -> threading.Timer:
        """A timer that ends running requests after ``grace_s`` seconds; cancel it once the server has stopped.

        Without it, the server would wait for them.
        """
        timer = threading.Timer(grace_s, self.egress.close)
        timer.start()
        return timer

    def close(self) -> None:
        """End all running requests and lookups."""
        self.egress.close()
        self.names.stop()
        self.secrets.close()


class _CapabilitiesOfCall:
    """The ``Capabilities`` of one call."""

    def __init__(self, secrets: CallSecrets, apis: EgressCapability, names: NamesOfCall) -> None:
        self._secrets = secrets
        self._apis = apis
        self._names = names

    def secret(self, name: str) -> str:
        """See ``Capabilities``."""
        return self._secrets.secret(name)

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        return self._apis.request(request)

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``Capabilities``."""
        return self._names.resolve(name, kind)
