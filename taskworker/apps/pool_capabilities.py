"""What is outside of a pool, and who of its functions gets how much of it: secrets, outside APIs, names."""

from __future__ import annotations

import functools
import logging
import os
import threading
from pathlib import Path

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

_MASTER_KEY = "master.key"
_AUDIT_LOG = "egress.log"


class PoolCapabilities:
    """The world outside of a pool, from :meth:`start` until :meth:`close`.

    Args:
        pool: whose it is.
        functions: of the pool.
        directory: of the pool.
        master_key: where the key of the secrets is; default: the file ``master.key`` in ``directory``.
        egress: bounds on calls of outside APIs.
        dns: how to resolve names, and where to serve them.

    Raises:
        FormatError: what the catalog keeps of rules cannot be read.
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
    ) -> None:
        self._functions = functions
        self._address = ""
        self._rules = RuleBook(pool.documents)
        self.secrets = Secrets(pool.documents, master_key or KeyFile(Path(directory) / _MASTER_KEY))
        self.egress = EgressProxy(
            self._rules,
            AuditLog(Path(directory) / _AUDIT_LOG),
            limits=egress,
            fill=RequestSecrets(self.secrets, functions.hosting.redactors.given_to).fill,
        )
        self.names = Names(PoolDirectory(pool.pool_id, lambda: self._address, pool.membership, functions), dns)

    def start(self) -> None:
        """Serve names.

        Raises:
            StorageUnavailable: the address to serve them on is taken.
        """
        self.names.start()

    def began(self, address: str) -> None:
        """The pool serves at an address; say what there is to say of its secrets."""
        self._address = address
        try:
            self.secrets.check()
        except (SecretsUnavailable, SecretDamaged) as error:
            log.warning("%s", error)

    def of(self, call: Call) -> Capabilities:
        """The world outside as a call may use it, for as long as it is under way."""
        return _CapabilitiesOfCall(
            CallSecrets(self.secrets, call, functools.partial(self._functions.hosting.redactors.given, call)),
            EgressCapability(self.egress, call, lambda: self._functions.hosting.call_of(call.token) is not None),
            NamesOfCall(self.names, call.function, self._rules.allows_host),
        )

    def ending(self, grace_s: float) -> threading.Timer:
        """End requests under way in ``grace_s`` seconds, as the server would wait for them; to be cancelled after."""
        timer = threading.Timer(grace_s, self.egress.close)
        timer.start()
        return timer

    def close(self) -> None:
        """End all that is under way."""
        self.egress.close()
        self.names.stop()
        self.secrets.close()


class _CapabilitiesOfCall:
    """Of one call; ``Capabilities``."""

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
