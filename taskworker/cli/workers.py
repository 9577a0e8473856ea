"""The command worker."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.log_lines import LogFormat, LogFormatOption
from taskworker.cli.metrics import Metrics, MetricsAddress, MetricsCert, MetricsKey, MetricsToken
from taskworker.cli.programs import run_program
from taskworker.cli.session import Session
from taskworker.cli.signals import Stopped, finish_regardless
from taskworker.cli.supervised import GRACE_S, LimitsMax, Supervised, watch_parent
from taskworker.cli.text import one_line
from taskworker.cli.tls import accept_tls_1_3_only

if TYPE_CHECKING:
    from taskworker.cli.metrics import Shown
    from taskworker.worker.functions import HostedFunctions
    from taskworker.worker.member import WorkerMember
    from taskworker.worker.volume import VolumeWorker

DEFAULT_WORKER_ADDRESS = "127.0.0.1:50052"


def worker(
    session: Session,
    program: Annotated[
        str | None,
        typer.Argument(
            help="Run a program's own worker instead: a module and the TaskWorker object in it.",
            metavar="[MODULE:WORKER]",
        ),
    ] = None,
    worker_id: Annotated[
        str, typer.Option("--id", help="The worker's name in the pool.", metavar="NAME")
    ] = "worker_001",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Directory for its shards, best on a disk of its own.", metavar="DIR", file_okay=False
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            help="Address at which the pool reaches it: HOST:PORT (port 0: any free one) or unix:PATH.", metavar="ADDR"
        ),
    ] = DEFAULT_WORKER_ADDRESS,
    token: Annotated[
        str,
        typer.Option(
            help="Token to join the pool with, once; better in the environment, where other users cannot read it.",
            metavar="TOKEN",
            envvar="TASKWORKER_JOIN_TOKEN",
            show_envvar=True,
        ),
    ] = "",
    shard_port: Annotated[
        int,
        typer.Option(
            help="Port for its volume, on the host of --listen; 0: any free one.",
            metavar="PORT",
            min=0,
            max=65535,
        ),
    ] = 0,
    direct: Annotated[
        bool,
        typer.Option("--direct/--no-direct", help="Let clients read shards from here themselves, with tickets."),
    ] = True,
    clients_port: Annotated[
        int,
        typer.Option(
            help="Port where they do, on the host of --listen; 0: any free one.", metavar="PORT", min=0, max=65535
        ),
    ] = 0,
    owner: Annotated[
        str,
        typer.Option(
            help="Owner of the machine. Shards are spread over owners first, as an owner may take all machines away.",
            metavar="NAME",
        ),
    ] = "",
    zone: Annotated[
        str,
        typer.Option(
            help="What may fail as a whole, such as a rack or a room. Shards are spread over zones.", metavar="ZONE"
        ),
    ] = "",
    capacity: Annotated[
        int | None,
        typer.Option(
            help="How much it may hold, relative to other workers, in GiB (default: the size of its disk).",
            metavar="GIB",
            min=1,
        ),
    ] = None,
    functions: Annotated[
        bool, typer.Option("--functions/--no-functions", help="Run the pool's functions, in sandboxes.")
    ] = True,
    limits_max: LimitsMax = "",
    process_calls_max: Annotated[
        int | None,
        typer.Option(
            help="Most calls that one process serves with --isolation user; 1: each call has its own process.",
            metavar="N",
            min=1,
        ),
    ] = None,
    process_seconds_max: Annotated[
        float | None, typer.Option(help="Longest time for which such a process serves calls.", metavar="SECONDS", min=0)
    ] = None,
    volume: Annotated[
        bool,
        typer.Option("--volume/--no-volume", help="Keep the pool's data, or only run its functions."),
    ] = True,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label that functions may need (deploy --needs); repeatable.", metavar="KEY=VALUE"),
    ] = None,
    scrub_rate: Annotated[
        float,
        typer.Option(
            help="How fast to verify the stored shards, over and over, in MiB/s; 0: never.", metavar="MIB/S", min=0
        ),
    ] = 16.0,
    metrics: MetricsAddress = "",
    metrics_cert: MetricsCert = None,
    metrics_key: MetricsKey = None,
    metrics_token: MetricsToken = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    supervised: Supervised = False,
) -> None:
    """Keep a node pool's data in a directory, and run its functions, until Ctrl-C.

    A worker that is restarted with the same --id and --dir takes its former place. It waits for a pool that does not
    answer; if the pool may move, give --pool several addresses, separated by commas.

    Examples:
        taskworker worker --pool 127.0.0.1:50051 --id worker_001 --dir /disk1/worker
        taskworker worker --id worker_002 --dir /disk2/worker --listen 127.0.0.1:0 --zone rack2
        taskworker worker --id runner_1 --listen 127.0.0.1:0 --no-volume --label gpu=none
        taskworker worker app:worker
        taskworker worker --pool pool.example:50061 --id w7 --listen 0.0.0.0:0 --token tw1...
    """
    session.terminal.log_in(log_format)
    accept_tls_1_3_only()
    from storage.system.descriptors import raise_descriptor_limit
    from taskworker.cli.allocator import keep_one_arena
    from taskworker.cli.turns import take_short_turns
    from taskworker.outbound.secrets.process_memory import forbid_core_dumps

    keep_one_arena()
    take_short_turns()
    raise_descriptor_limit()
    forbid_core_dumps()  # secrets pass through this process on their way to functions
    if program is not None:
        if metrics:
            raise Failure("--metrics is not for a program's own worker: leave one of both out", ExitCode.USAGE)
        run_program(session, program, listen)
        return
    from taskworker.calls.labels import labels_from_texts
    from taskworker.calls.spec import KEEP_MAX, LIMITS_MAX, limits_from_text
    from taskworker.sandbox import Keep
    from taskworker.worker.clients_port import ClientsOptions
    from taskworker.worker.functions import HostedFunctions
    from taskworker.worker.places import default_store
    from taskworker.worker.volume import VolumeWorker

    shown = Metrics(metrics, metrics_cert, metrics_key, metrics_token)
    pool_address = session.pool_address()
    path = directory or default_store(worker_id)
    capacity_bytes = None if capacity is None else capacity << 30
    member = _member(path, pool_address, token, worker_id)
    hosted = None
    if label and not functions:
        raise Failure("--label has no effect with --no-functions: leave one out", ExitCode.USAGE)
    if functions:
        most = limits_from_text(limits_max, LIMITS_MAX)
        labels = labels_from_texts(label or [])
        hosted = HostedFunctions(
            pool_address,
            path / "functions",
            required=not volume,
            member=member,
            limits_max=most,
            keep_max=Keep(
                KEEP_MAX.calls if process_calls_max is None else process_calls_max,
                KEEP_MAX.seconds if process_seconds_max is None else process_seconds_max,
            ),
            labels=labels,
        )
    if not volume:
        if hosted is None:
            raise Failure("a worker with --no-volume and --no-functions would do nothing", ExitCode.USAGE)
        _run_functions_only(session, worker_id, path, hosted, listen, member, shown, supervised=supervised)
        return
    running = VolumeWorker(
        worker_id,
        pool_address,
        path,
        zone=zone,
        owner=owner,
        capacity=capacity_bytes,
        scrub_bytes_per_s=int(scrub_rate * (1 << 20)),
        functions=hosted,
        shard_port=shard_port,
        member=member,
        clients=ClientsOptions(direct, clients_port),
    )
    shown.show(partial(_figures, running, hosted, member))
    try:
        watch_parent(wanted=supervised)
        running.start(listen)
        session.terminal.result(
            {
                "worker": worker_id,
                "address": running.address,
                "shard_address": running.shard_address,
                "clients_address": running.clients_address,
                "dir": str(path.resolve()),
                "pid": os.getpid(),
            }
            | shown.document(),
            f"worker {worker_id} at {running.address} joined the pool at {pool_address}, shards in "
            f"{one_line(str(path))}; Ctrl-C stops it",
            *shown.lines(),
        )
        running.wait()
    except Stopped:
        finish_regardless()
        session.terminal.note("leaving the pool; the shards stay here for the next start")
    finally:
        shown.stop()
        running.stop(GRACE_S)


def _figures(worker: VolumeWorker | None, functions: HostedFunctions | None, member: WorkerMember | None) -> Shown:
    from taskworker.worker.metrics import worker_parts, worker_unready

    return lambda: worker_unready(worker, functions), worker_parts(worker, functions, member)


def _member(path: Path, pool_address: str, token: str, worker_id: str) -> WorkerMember | None:
    """Join with a token, or read the certificate of a worker that did so before; None: the pool needs none."""
    from storage.system.private_paths import make_root_directory
    from taskworker.worker.member import enroll, load_member

    member = load_member(path)
    if member is None and not token:
        return None
    if token and (member is None or not member.joined_with(token)):
        make_root_directory(path)
        return enroll(path, pool_address, token, worker_id)
    assert member is not None
    if member.credentials.problem:
        raise Failure(
            f"{member.credentials.problem}. Ask the pool's operator for a new token (`taskworker worker token`), and "
            "start this worker with it",
            ExitCode.FAILED,
        )
    if member.worker_id != worker_id:
        raise Failure(f"{one_line(str(path))} is the directory of worker {one_line(member.worker_id)}", ExitCode.USAGE)
    return member


def _run_functions_only(
    session: Session,
    worker_id: str,
    path: Path,
    hosted: HostedFunctions,
    listen: str,
    member: WorkerMember | None,
    shown: Metrics,
    *,
    supervised: bool,
) -> None:
    from taskworker.worker.functions_only import FunctionsOnlyWorker

    runner = FunctionsOnlyWorker(worker_id, path, hosted, member)
    shown.show(partial(_figures, None, hosted, member))
    try:
        watch_parent(wanted=supervised)
        runner.start(listen)
        session.terminal.result(
            {"worker": worker_id, "address": runner.address, "dir": str(path.resolve()), "pid": os.getpid()}
            | shown.document(),
            f"worker {worker_id} at {runner.address} runs functions of the pool at {session.pool_address()}, and holds "
            "no data; Ctrl-C stops it",
            *shown.lines(),
        )
        runner.wait()
    except Stopped:
        finish_regardless()
        session.terminal.note(f"leaving the pool; running calls have {GRACE_S:.0f} s to end")
    finally:
        shown.stop()
        runner.stop(GRACE_S)
