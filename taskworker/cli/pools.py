"""The commands that run a node pool: pool, and up with its workers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.bounds import ProfilesText, QuotaText, ServerLimitsText, server_limits, storage_policy
from taskworker.cli.direct import Direct, DirectPushes
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.log_lines import LogFormat, LogFormatOption
from taskworker.cli.metrics import Metrics, MetricsAddress, MetricsCert, MetricsKey, MetricsToken
from taskworker.cli.names import (
    DnsAllowPrivate,
    DnsBlock,
    DnsPort,
    DnsUpstream,
    dns_document,
    dns_lines,
    dns_options,
)
from taskworker.cli.page_process import PageAddress, PageCert, PageKey, PageProcess
from taskworker.cli.profile import K, N, profile_of
from taskworker.cli.session import DEFAULT_ADDRESS, Session
from taskworker.cli.signals import Stopped, finish_regardless
from taskworker.cli.supervised import GRACE_S, NO_AUTH_WARNING, Encryption, LimitsMax, NoAuth, Supervised, watch_parent
from taskworker.cli.text import one_line
from taskworker.cli.tls import Tls, TlsCert, TlsKey, TlsName, accept_tls_1_3_only, tls_document, tls_lines, tls_options

if TYPE_CHECKING:
    from taskworker.apps.pool_server import PoolServer
    from taskworker.auth.oidc import OidcOptions
    from taskworker.cli.metrics import Shown
    from taskworker.functions.routing.users import UserShares
    from taskworker.outbound.secrets.master_key import MasterKeySource

_COUNT_DIGITS = 9


def pool(
    session: Session,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the pool keeps its catalog.", metavar="DIR", file_okay=False)
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Address to listen on: HOST:PORT (port 0: any free one) or unix:PATH.", metavar="ADDR")
    ] = DEFAULT_ADDRESS,
    join: Annotated[
        str,
        typer.Option(
            help="Address at which workers of other machines join, with tokens and TLS: HOST:PORT (default: none; "
            "workers of this machine join at --listen, without tokens).",
            metavar="ADDR",
        ),
    ] = "",
    members_port: Annotated[
        int,
        typer.Option(
            help="Port for workers that have joined, on the host of --join; 0: the former one, at first any free one.",
            metavar="PORT",
            min=0,
            max=65535,
        ),
    ] = 0,
    certificate_hours: Annotated[
        float,
        typer.Option(
            help="How long certificates of workers are valid, in hours. Workers renew them after half of that.",
            metavar="HOURS",
            min=0.05,
            max=8760.0,
        ),
    ] = 24.0,
    grace: Annotated[
        float,
        typer.Option(
            help="How long to wait for a silent worker before its shards are rebuilt on the others.",
            metavar="SECONDS",
            min=0,
        ),
    ] = 30.0,
    margin: Annotated[
        int,
        typer.Option(
            help="Repair chunks with fewer than N spare shards at once, without waiting for --grace.",
            metavar="N",
            min=0,
        ),
    ] = 1,
    allow_fragile: Annotated[
        bool,
        typer.Option(
            "--allow-fragile",
            help="Accept files that the loss of one worker would make unreadable, for example with one or two workers.",
            show_default=False,
        ),
    ] = False,
    tranquility: Annotated[
        float,
        typer.Option(
            help="While users are active, how long repair, rebalance and collect pause after each piece of work, "
            "as a multiple of the time that it took.",
            metavar="N",
            min=0,
        ),
    ] = 4.0,
    collect_every: Annotated[
        float,
        typer.Option(
            help="How often to free the space of data that no file needs any more; it is done earlier if that is much. "
            "0: only on `taskworker collect`, and once a worker is back that missed one.",
            metavar="SECONDS",
            min=0,
        ),
    ] = 86400.0,
    capacity_max: Annotated[
        int,
        typer.Option(
            help="Largest capacity of a worker, in GiB; if a worker states more, this counts.", metavar="GIB", min=1
        ),
    ] = 1 << 20,
    audit_rate: Annotated[
        int,
        typer.Option(
            help="How fast to fetch and verify shards chosen at random from the workers, in KiB/s; 0: never.",
            metavar="KIB",
            min=0,
        ),
    ] = 512,
    cache: Annotated[
        int,
        typer.Option(
            help="Memory for small objects that were read lately or pushed just now, so that they are not fetched from "
            "workers, in MiB; 0: none.",
            metavar="MIB",
            min=0,
        ),
    ] = 32,
    small_copies: Annotated[
        int,
        typer.Option(
            help="Keep files up to this size, at most 64 KiB, as n - k + 1 whole copies instead of n shards, unless a "
            "profile is chosen for them: they are read and written faster and survive as many losses, but take more "
            "space; in KiB; 0: none.",
            metavar="KIB",
            min=0,
            max=64,
        ),
    ] = 16,
    rebuild: Annotated[
        str,
        typer.Option(
            help="Replace the pool with this id, whose directory is lost, in a new --dir; then run `taskworker "
            "rebuild`.",
            metavar="POOL_ID",
        ),
    ] = "",
    master_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the key to the pool's secrets and encrypted files, created if absent (default: master.key "
            "in --dir). The key itself can be given in TASKWORKER_MASTER_KEY, in base64.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    encrypts: Encryption = None,
    direct: Direct = True,
    direct_pushes: DirectPushes = True,
    owner: Annotated[
        str,
        typer.Option(
            help="Who owns the pool's machine. With --no-encryption, workers of other owners are refused.",
            metavar="NAME",
        ),
    ] = "",
    limits_max: LimitsMax = "",
    log_size: Annotated[
        int, typer.Option(help="Largest size of the log of what functions print, in MiB.", metavar="MIB", min=1)
    ] = 256,
    log_days: Annotated[float, typer.Option(help="How long that log is kept.", metavar="DAYS", min=0)] = 14.0,
    user_calls: Annotated[
        list[str] | None,
        typer.Option(
            help="How many running calls each user, or this one, may have (default: 96); repeatable.",
            metavar="[USER=]N",
        ),
    ] = None,
    user_queue: Annotated[
        list[str] | None,
        typer.Option(
            help="How many more calls of each user, or this one, may wait, before calls are refused (default: 0); "
            "repeatable.",
            metavar="[USER=]N",
        ),
    ] = None,
    user_weight: Annotated[
        list[str] | None,
        typer.Option(
            help="A user's weight when users compete for calls; all others have 1; repeatable.",
            metavar="USER=N",
        ),
    ] = None,
    user_cpu: Annotated[
        list[str] | None,
        typer.Option(
            help="How many seconds of processor time the calls of each user, or this one, may take in an hour "
            "(default: any number); repeatable.",
            metavar="[USER=]SECONDS",
        ),
    ] = None,
    dns_port: DnsPort = None,
    dns_upstream: DnsUpstream = None,
    dns_block: DnsBlock = None,
    dns_allow_private: DnsAllowPrivate = None,
    audit_log: Annotated[
        int,
        typer.Option(
            help="Size of the audit trail (see `taskworker audit`), whose oldest records are removed.",
            metavar="MIB",
            min=8,
        ),
    ] = 256,
    k: K = None,
    n: N = None,
    tls: Tls = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
    oidc_issuer: Annotated[
        str,
        typer.Option(
            help="URL of an OpenID Connect provider, whose identity tokens users can trade for tokens "
            "(`login --identity`).",
            metavar="URL",
        ),
    ] = "",
    oidc_audience: Annotated[
        str, typer.Option(help="Id under which that provider knows this pool (`aud`).", metavar="ID")
    ] = "",
    oidc_claim: Annotated[
        str, typer.Option(help="Which claim of such a token is the user's name here.", metavar="NAME")
    ] = "email",
    no_auth: NoAuth = False,
    limits: ServerLimitsText = "",
    quota: QuotaText = "",
    profiles: ProfilesText = "",
    metrics: MetricsAddress = "",
    metrics_cert: MetricsCert = None,
    metrics_key: MetricsKey = None,
    metrics_token: MetricsToken = None,
    page: PageAddress = "",
    page_cert: PageCert = None,
    page_key: PageKey = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    supervised: Supervised = False,
) -> None:
    """Run a node pool: users connect to it, and workers keep its data. Ctrl-C stops it; workers wait until it returns.

    Examples:
        taskworker pool --dir ./pool
        taskworker pool --dir ./pool --listen unix:./pool/socket --k 2 --n 4
        taskworker pool --dir ./pool --dns-port 5353
        taskworker pool --dir ./pool --join 0.0.0.0:50061 --members-port 50062
        taskworker pool --dir ./pool --listen 0.0.0.0:50051 --tls-cert server.crt --tls-key server.key
    """
    session.terminal.log_in(log_format)
    accept_tls_1_3_only()
    from storage.system.descriptors import raise_descriptor_limit
    from taskworker.apps.pool_server import PoolServer
    from taskworker.auth.contexts import reached_here
    from taskworker.auth.owner_context import keep_owner_context
    from taskworker.calls.spec import LIMITS_MAX, limits_from_text
    from taskworker.cli.allocator import keep_one_arena
    from taskworker.cli.turns import take_short_turns
    from taskworker.functions.routing.policy import FunctionPolicy
    from taskworker.functions.routing.record_formats import RecordBounds
    from taskworker.outbound.secrets.process_memory import keep_private
    from taskworker.pool.options import PoolOptions
    from taskworker.pool.slices import take_short_slices
    from taskworker.worker.places import default_store

    keep_one_arena()
    take_short_turns()
    take_short_slices()
    raise_descriptor_limit()
    path = directory or default_store("pool")
    encryption = tls_options(listen, tls_cert, tls_key, tls_name, wanted=tls, no_auth=no_auth)
    options = PoolOptions(
        grace_s=grace,
        margin=margin,
        allow_fragile=allow_fragile,
        tranquility=tranquility,
        collect_every_s=collect_every,
        capacity_max=capacity_max << 30,
        audit_bytes_per_s=audit_rate << 10,
        hot_bytes=cache << 20,
        small_copies_bytes=small_copies << 10,
        certificates_s=certificate_hours * 3600.0,
        rebuild=rebuild,
        encrypts=encrypts,
        direct=direct,
        direct_pushes=direct_pushes,
        owner=owner,
    )
    keep_private()
    dns = dns_options(dns_port, dns_upstream, dns_block, dns_allow_private)
    key = _master_key(master_key)
    policy = FunctionPolicy(
        limits_max=limits_from_text(limits_max, LIMITS_MAX),
        records=RecordBounds(
            function_bytes=max(1, log_size // 16) << 20, total_bytes=log_size << 20, age_s=log_days * 86_400.0
        ),
        shares=_shares(user_calls or [], user_queue or [], user_weight or [], user_cpu or []),
    )
    profile = profile_of(k, n)
    shown = Metrics(metrics, metrics_cert, metrics_key, metrics_token)
    pages = PageProcess(page, page_cert, page_key, no_auth=no_auth)
    server = PoolServer(
        path,
        profile=profile,
        options=options,
        master_key=key,
        dns=dns,
        functions=policy,
        joins_by_token=bool(join),
        authenticates=not no_auth,
        identities=_identities(oidc_issuer, oidc_audience, oidc_claim) if oidc_issuer else None,
        audit_log_bytes=audit_log << 20,
        limits=server_limits(limits),
        storage=storage_policy(quota, profiles),
    )

    shown.show(partial(_figures, server))

    def keep_context(address: str) -> None:
        trust = None if server.tls is None else server.tls.trust
        keep_owner_context(server.users, server.pool.pool_id, address, trust=trust, has_workers=not join)

    def bound(address: str) -> None:
        if no_auth:
            session.terminal.error(NO_AUTH_WARNING)
        else:
            keep_context(address)
            server.on_authority_change = partial(keep_context, address)

    port = server.start(listen, join, members_port, tls=encryption, bound=bound)
    address = listen if port == 0 else f"{listen.rpartition(':')[0]}:{port}"
    here = one_line(reached_here(address))
    try:
        watch_parent(wanted=supervised)
        names_at = server.capabilities.names.address
        pages.start(reached_here(address))
        session.terminal.result(
            {"address": address, "dir": str(path.resolve()), "pid": os.getpid()}
            | ({"join_address": server.join_address} if join else {})
            | tls_document(server.tls)
            | dns_document(names_at)
            | shown.document()
            | pages.document(),
            f"pool {server.pool.pool_id} at {address}, catalog in {one_line(str(path))}; Ctrl-C stops it",
            *([f"workers join at {server.join_address}, with tokens"] if join else []),
            *tls_lines(server.tls, address),
            *dns_lines(names_at),
            *shown.lines(),
            *pages.lines(),
        )
        if server.pool.store.needs_rebuild:
            session.terminal.note(
                "\nThe catalog must be rebuilt from what the workers hold. They join by themselves if this is the "
                f"former pool's address;\nonce `taskworker status` shows all of them:\n"
                f"  taskworker rebuild --pool {here}\n"
            )
        elif join:
            session.terminal.note(
                "\nAdd workers of any machine that reaches this one: make a token for each with\n"
                f"  taskworker worker token --pool {here} --id NAME\n"
            )
        else:
            session.terminal.note(f"\nAdd workers from other terminals:\n  taskworker worker --pool {here} --id NAME\n")
        server.wait()
    except Stopped:
        finish_regardless()
        session.terminal.note(f"stopping; running calls have {GRACE_S:.0f} s to end")
    finally:
        pages.stop()
        shown.stop()
        server.stop(GRACE_S)


def _figures(server: PoolServer) -> Shown:
    from taskworker.apps.pool_metrics import pool_parts, pool_unready

    return lambda: pool_unready(server.pool), pool_parts(server)


def _identities(issuer: str, audience: str, claim: str) -> OidcOptions:
    from taskworker.auth.oidc import OidcOptions

    return OidcOptions(issuer, audience, claim)


def _shares(calls: list[str], queue: list[str], weights: list[str], cpu: list[str]) -> UserShares:
    """The shares given by ``--user-calls``, ``--user-queue``, ``--user-weight`` and ``--user-cpu``."""
    from taskworker.functions.routing.users import USER_CALLS, UserShares

    try:
        most, most_of = _counts(calls, USER_CALLS)
        waiting, waiting_of = _counts(queue, 0)
        cpu_s, cpu_s_of = _counts(cpu, 0)
        pairs = [item.rpartition("=") for item in weights]
        if not all(separator for _, separator, _ in pairs):
            raise ValueError("a weight is USER=N")
        weight_of = {user: float(weight) for user, _, weight in pairs}
    except ValueError as error:
        raise Failure(
            f"--user-calls, --user-queue, --user-cpu [USER=]N, --user-weight USER=N: {error}", ExitCode.USAGE
        ) from None
    return UserShares(most, most_of, waiting, waiting_of, weight_of, cpu_s, cpu_s_of)


def _counts(items: list[str], default: int) -> tuple[int, dict[str, int]]:
    """The number for all users, and numbers for some, from a list such as ``["20", "ann=60"]``."""
    of_all, of_users = default, dict[str, int]()
    for item in items:
        user, separator, count = item.rpartition("=")
        if not (count.isascii() and count.isdecimal()) or len(count) > _COUNT_DIGITS:
            raise ValueError(f"{count[:40]!r} is not a number")
        if separator:
            of_users[user] = int(count)
        else:
            of_all = int(count)
    return of_all, of_users


def _master_key(file: Path | None) -> MasterKeySource | None:
    from taskworker.outbound.secrets.master_key import VARIABLE, GivenKeys, KeyFile

    given = os.environ.pop(VARIABLE, None)  # no child of this process needs it
    if file is not None:
        return KeyFile(file)
    return GivenKeys(given) if given else None


def up(
    session: Session,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Directory for all data, which the next `up` uses again.", metavar="DIR", file_okay=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="How many workers.", metavar="N", min=1, max=64)] = 6,
    listen: Annotated[str, typer.Option(help="Where the pool listens.", metavar="ADDR")] = DEFAULT_ADDRESS,
    grace: Annotated[
        float,
        typer.Option(help="How long to wait for a silent worker (see `taskworker pool`).", metavar="SECONDS", min=0),
    ] = 30.0,
    restart: Annotated[bool, typer.Option("--restart", help="Restart processes that die.", show_default=False)] = False,
    encrypts: Encryption = None,
    no_auth: NoAuth = False,
    k: K = None,
    n: N = None,
) -> None:
    """Start a node pool and its workers on this machine, for a trial or for development. Ctrl-C stops all of them.

    Examples:
        taskworker up
        taskworker up --dir ./cluster --workers 8 --grace 5
    """
    from taskworker.cli.supervisor import Supervisor
    from taskworker.worker.places import default_store

    profile = profile_of(k, n)
    supervisor = Supervisor(
        session.terminal,
        directory or default_store("up"),
        workers=workers,
        listen=listen,
        grace_s=grace,
        restart=restart,
        no_auth=no_auth,
        encrypts=encrypts,
        profile=None if profile is None else (profile.k, profile.n),
    )
    try:
        supervisor.start()
        supervisor.watch()
    except Stopped:
        finish_regardless()
        session.terminal.note("stopping the pool and its workers")
    finally:
        supervisor.stop()
