"""The command serve: serves an embedded store over gRPC."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.bounds import ProfilesText, QuotaText, ServerLimitsText, server_limits, storage_policy
from taskworker.cli.log_lines import LogFormat, LogFormatOption
from taskworker.cli.metrics import Metrics, MetricsAddress, MetricsCert, MetricsKey, MetricsToken
from taskworker.cli.profile import K, N, profile_of
from taskworker.cli.session import DEFAULT_ADDRESS, Session
from taskworker.cli.signals import Stopped, finish_regardless
from taskworker.cli.supervised import NO_AUTH_WARNING, NoAuth
from taskworker.cli.text import one_line
from taskworker.cli.tls import Tls, TlsCert, TlsKey, TlsName, accept_tls_1_3_only, tls_document, tls_lines, tls_options

if TYPE_CHECKING:
    from storage import FileStorage
    from taskworker.auth.server_certificates import ServerTls
    from taskworker.cli.metrics import Shown
    from taskworker.services.file_server import FileServer

_GRACE_S = 5.0


def serve(
    session: Session,
    listen: Annotated[
        str,
        typer.Option(help="Address to listen on: HOST:PORT (port 0: any free one) or unix:PATH.", metavar="ADDR"),
    ] = DEFAULT_ADDRESS,
    volume: Annotated[
        list[Path] | None,
        typer.Option(
            help="A directory for the volumes of a new store, best each on its own disk; give it n times "
            "(default: n directories in the store's).",
            metavar="DIR",
        ),
    ] = None,
    tls: Tls = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
    no_auth: NoAuth = False,
    limits: ServerLimitsText = "",
    quota: QuotaText = "",
    profiles: ProfilesText = "",
    metrics: MetricsAddress = "",
    metrics_cert: MetricsCert = None,
    metrics_key: MetricsKey = None,
    metrics_token: MetricsToken = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    k: K = None,
    n: N = None,
) -> None:
    """Serve the store in a directory over gRPC until Ctrl-C. Creates the store if it does not exist.

    Examples:
        taskworker --store ./data serve
        taskworker --store ./data serve --listen unix:./data/socket
        taskworker --store ./data serve --k 1 --n 2 --volume /a --volume /b
        taskworker --store ./data serve --listen 0.0.0.0:50051 --tls-name files.example.org
    """
    session.terminal.log_in(log_format)
    accept_tls_1_3_only()
    from storage import ErasureProfile, FileStorage
    from storage.system.descriptors import raise_descriptor_limit
    from taskworker.auth.contexts import reached_here
    from taskworker.auth.owner_context import keep_owner_context
    from taskworker.cli.allocator import keep_one_arena
    from taskworker.cli.turns import take_short_turns
    from taskworker.services.file_server import FileServer
    from taskworker.services.store_server import StoreServer

    keep_one_arena()
    take_short_turns()
    raise_descriptor_limit()
    path = session.store_path()
    profile = profile_of(k, n) or ErasureProfile()
    encryption = tls_options(listen, tls_cert, tls_key, tls_name, wanted=tls, no_auth=no_auth)
    key = session.key_file()
    shown = Metrics(metrics, metrics_cert, metrics_key, metrics_token)
    with contextlib.closing(FileStorage.open(path, profile=profile, volumes=volume or None, key=key)) as store:
        server = (
            FileServer(store, limits=server_limits(limits))
            if no_auth
            else StoreServer(store, limits=server_limits(limits), storage=storage_policy(quota, profiles))
        )
        shown.show(partial(_figures, store, server))
        used: ServerTls | None = None

        def keep_context(server: StoreServer, address: str) -> None:
            trust = None if server.tls is None else server.tls.trust
            keep_owner_context(server.users, f"store:{path.resolve()}", address, trust=trust)

        def bound(address: str) -> None:
            nonlocal used
            if isinstance(server, StoreServer):
                used = server.tls
                keep_context(server, address)
                server.on_authority_change = partial(keep_context, server, address)
            else:
                session.terminal.error(NO_AUTH_WARNING)

        if encryption is not None and isinstance(server, StoreServer):
            port = server.start_tls(listen, encryption, bound=bound)
        else:
            port = server.start(listen, bound=bound)
        address = listen if port == 0 else f"{listen.rpartition(':')[0]}:{port}"
        try:
            session.terminal.result(
                {"address": address, "store": str(path.resolve()), "pid": os.getpid()}
                | tls_document(used)
                | shown.document(),
                f"serving {one_line(str(path))} at {address}; Ctrl-C stops it",
                *tls_lines(used, address),
                *shown.lines(),
            )
            session.terminal.note(
                f"\nTry in another terminal:\n  export TASKWORKER_POOL={one_line(reached_here(address))}\n"
                "  taskworker push FILE\n  taskworker ls\n"
            )
            server.wait()
        except Stopped:
            finish_regardless()
            session.terminal.note(f"stopping; running calls have {_GRACE_S:.0f} s to end")
        finally:
            shown.stop()
            server.stop(_GRACE_S)


def _figures(store: FileStorage, server: FileServer) -> Shown:
    from taskworker.services.store_metrics import store_parts, store_unready

    return lambda: store_unready(store), store_parts(store, server)
