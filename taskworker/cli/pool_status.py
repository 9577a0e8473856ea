"""The commands that show a node pool and change its members: status, layout, drain, forget."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import duration_text, one_line, plural, size_text, time_text

if TYPE_CHECKING:
    from taskworker.client.pool import LayoutPreview, LayoutShare, LayoutStatus, PoolStatus, WorkerStatus, WorkStatus

_EVENTS_SHOWN = 8
_GIB = re.compile(r"[0-9]{1,9}")
_NAME_MIN, _NAME_MAX = 10, 40


def pool_status_lines(status: PoolStatus) -> list[str]:
    """The status of a pool, with its health in the first line."""
    width = max((len(worker.worker_id) for worker in status.workers), default=0)
    width = min(max(width, _NAME_MIN), _NAME_MAX)
    lines = [
        one_line(status.health),
        "",
        f"pool      {status.pool_id}, layout {status.layout_version}",
        f"files     {plural(status.files, 'file')} of {size_text(status.logical_bytes)}, "
        f"{plural(status.versions, 'version')}",
        f"profile   any {status.k} of {status.n} shards suffice, coded with {status.accelerator}",
        f"at rest   {_at_rest(status)}",
        *(line for work in status.work for line in _work_lines(work)),
        "",
        f"{'WORKER':{width}}  {'STATE':10}  {'SHARDS':>9}  {'USED':>10}  {'DEAD':>10}  {'DISK FREE':>10}  "
        f"{'SHARE':>6}  {'CPU':>4}  {'SEEN':>6}  ADDRESS",
        *(_worker_line(worker, width) for worker in sorted(status.workers, key=lambda worker: worker.worker_id)),
    ]
    liars = [worker for worker in status.workers if worker.lies]
    lines += [f"! {worker.worker_id} sent {plural(worker.lies, 'wrong or rotten shard')}" for worker in liars]
    if status.master_key_id and not status.master_key_copied_ms:
        lines.append(
            "! no copy of the master key was made: if the pool's disk is lost, so are all encrypted files (taskworker "
            "secret export-key)"
        )
    if status.events:
        lines += ["", "lately:"]
        lines += [f"  {time_text(event.time_ms)}  {one_line(event.text)}" for event in status.events[-_EVENTS_SHOWN:]]
    return lines


def _at_rest(status: PoolStatus) -> str:
    """Whether workers can read what they hold."""
    key = f", master key {status.master_key_id}" if status.master_key_id else ""
    if status.encrypts:
        return f"encrypted{key}"
    earlier = " (what was encrypted earlier is)" if status.master_key_id else ""
    return f"not encrypted{earlier}, so workers' owners can read files: taskworker pool --encryption{key}"


def _work_lines(work: WorkStatus) -> list[str]:
    """The state of one kind of background work, and in a second line its last error."""
    parts = [work.state + _share(work)]
    if work.bytes_per_s:
        parts.append(f"{size_text(int(work.bytes_per_s))}/s")
    if work.queue:
        parts.append(f"{work.queue:,} wait")
    if work.seconds_left is not None and work.state == "running":
        parts.append(f"{duration_text(work.seconds_left)} left")
    if work.ended_ms and work.state != "running":
        parts.append(f"last {time_text(work.ended_ms)}")
    if work.next_ms:
        parts.append(f"next {time_text(work.next_ms)}")
    lines = [f"{work.name:9} {', '.join(parts)}{': ' if work.note else ''}{one_line(work.note)}"]
    if work.errors:
        lines.append(f"{'':9} ! failed {plural(work.errors, 'time')} in a row: {one_line(work.error)}")
    return lines


def _share(work: WorkStatus) -> str:
    if not work.total or work.state not in ("running", "waiting"):
        return ""
    if work.unit == "bytes":
        return f" {size_text(work.done)} of {size_text(work.total)}"
    return f" {work.done:,} of {work.total:,} {work.unit}"


def _worker_line(worker: WorkerStatus, width: int) -> str:
    state = worker.state if worker.complete or worker.state != "alive" else "mending"
    seen = max(0.0, time.time() - worker.seen_ms / 1000) if worker.seen_ms else None
    return (
        f"{worker.worker_id:{width}}  {state:10}  {worker.shards:>9,}  {size_text(worker.bytes_used):>10}  "
        f"{size_text(max(0, worker.bytes_used - worker.bytes_live)):>10}  "
        f"{size_text(worker.bytes_free):>10}  {worker.share:>6.1%}  {worker.cpu:>4.0%}  "
        f"{'never' if seen is None else duration_text(seen):>6}  {one_line(worker.address)}"
    )


def layout(
    session: Session,
    what: Annotated[
        Literal["show", "preview"],
        typer.Argument(help="show: the current layout. preview: what a change would do.", show_default=True),
    ] = "show",
    add: Annotated[
        list[str] | None,
        typer.Option(help="preview: worker to add, as NAME, NAME@ZONE or NAME@ZONE:GIB; repeatable.", metavar="WORKER"),
    ] = None,
    owner: Annotated[
        str, typer.Option(help="preview: who owns the machines of the workers to add.", metavar="NAME")
    ] = "",
    remove: Annotated[
        list[str] | None, typer.Option(help="preview: worker to remove; repeatable.", metavar="NAME")
    ] = None,
) -> None:
    """Show how shards are spread over the workers, and which losses the files survive, now or after a change.

    A preview changes nothing: it shows what would move, and which losses would be survivable afterwards.

    Examples:
        taskworker layout
        taskworker layout preview --add worker_007
        taskworker layout preview --add big@rack2:4000 --owner anna --remove worker_001
    """
    from taskworker.client.pool import PoolClient

    if (what == "preview") != bool(add or remove):
        raise Failure("say what to change: `taskworker layout preview` with --add or --remove", ExitCode.USAGE)
    with PoolClient(session.pool_address()) as client:
        current = client.layout()
        if what == "show":
            session.terminal.result(document(current), *layout_lines(current))
            return
        usual = _usual_capacity(current)
        preview = client.preview([_member(text, owner, usual) for text in add or ()], remove or ())
    session.terminal.result(document(preview), *_preview_lines(preview))


def drain(
    session: Session,
    worker: Annotated[str, typer.Argument(help="The worker's name.", metavar="WORKER")],
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Stop draining the worker, and give it shards again.", show_default=False)
    ] = False,
) -> None:
    """Move a worker's shards to the others, so that it can be stopped for good. `status` shows when this is done.

    Examples:
        taskworker drain worker_003
        taskworker drain worker_003 --cancel
    """
    from taskworker.client.pool import PoolClient

    with PoolClient(session.pool_address()) as client:
        moved = client.drain(worker, cancel=cancel)
    what = "is no longer being drained" if cancel else "is being drained"
    # When a drain is cancelled, shards that have not moved yet need not move back.
    share = f"{'up to ' if cancel else ''}{moved:.1%}"
    session.terminal.result(
        {"worker": worker, "draining": not cancel, "moved": moved},
        f"{one_line(worker)} {what}: {share} of all shards move; see `taskworker status --watch`",
    )


def forget(
    session: Session, worker: Annotated[str, typer.Argument(help="The worker's name.", metavar="WORKER")]
) -> None:
    """Remove a worker that is gone for good: one that was drained and stopped, or that is dead and will not come back.

    Its shards are rebuilt on the others. If it does come back, it joins as a new worker.

    Examples:
        taskworker forget worker_003
    """
    from taskworker.client.pool import PoolClient

    with PoolClient(session.pool_address()) as client:
        client.forget(worker)
    session.terminal.result({"worker": worker, "forgotten": True}, f"{one_line(worker)} is forgotten")


def encrypt(
    session: Session,
    drop_earlier: Annotated[
        bool,
        typer.Option(
            "--drop-earlier",
            help="Once all files are encrypted, drop their earlier versions that are not. They cannot be brought back.",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Encrypt files that a pool stored before it encrypted: each gets a new version with the same content.

    The pool does it in the background, makes way for users, and goes on after a restart; `taskworker status` shows how
    far it is. Workers keep earlier versions in clear until these are dropped (--drop-earlier) and collected. Deployed
    functions are encrypted once they are deployed again.

    Examples:
        taskworker encrypt
        taskworker encrypt --drop-earlier
    """
    from taskworker.client.pool import PoolClient

    with PoolClient(session.pool_address()) as client:
        client.encrypt_existing(drop_earlier=drop_earlier)
    session.terminal.result(
        {"drop_earlier": drop_earlier}, "the pool encrypts its files in the background; `taskworker status` shows it"
    )


def _member(text: str, owner: str, usual_capacity: int) -> LayoutShare:
    from taskworker.client.pool import LayoutShare

    name, _, rest = text.partition("@")
    zone, _, gib = rest.partition(":")
    if not name or (gib and not _GIB.fullmatch(gib)):
        raise Failure(f"{text!r} is not NAME, NAME@ZONE or NAME@ZONE:GIB", ExitCode.USAGE)
    return LayoutShare(name, zone, int(gib) << 30 if gib else usual_capacity, 0.0, owner)


def _usual_capacity(current: LayoutStatus) -> int:
    capacities = sorted(member.capacity for member in current.members)
    return capacities[len(capacities) // 2] if capacities else 1 << 30


def layout_lines(current: LayoutStatus) -> list[str]:
    """A layout, and the losses that it survives."""
    if not current.members:
        return ["no worker has joined yet"]
    moving = f", {plural(current.former, 'former layout')} still in use" if current.former else ""
    return [
        f"layout {current.version} over {plural(len(current.members), 'worker')}{moving}",
        _survival(current),
        "",
        f"{'WORKER':16}  {'OWNER':12}  {'ZONE':12}  {'CAPACITY':>10}  {'SHARE':>6}",
        *(
            f"{one.worker_id:16}  {one.owner or '-':12}  {one.zone or '-':12}  {size_text(one.capacity):>10}  "
            f"{one.share:>6.1%}"
            for one in sorted(current.members, key=lambda one: one.worker_id)
        ),
    ]


def _survival(current: LayoutStatus) -> str:
    owners = {member.owner for member in current.members}
    zones = {(member.owner, member.zone) for member in current.members}
    kinds = [(current.workers_survivable, "worker")]
    if len(zones) > 1:
        kinds.append((current.zones_survivable, "zone"))
    if len(owners) > 1:
        kinds.append((current.owners_survivable, "owner"))
    survived = " or of ".join(_any_of(count, what) for count, what in kinds if count > 0)
    fatal = " or ".join(f"one {what}" for count, what in kinds if count <= 0)
    if not survived:
        return f"may not survive the loss of {fatal}"
    return f"survives the loss of {survived}" + (f", but may not survive that of {fatal}" if fatal else "")


def _any_of(count: int, what: str) -> str:
    return f"any one {what}" if count == 1 else f"any {plural(count, what)}"


def _preview_lines(preview: LayoutPreview) -> list[str]:
    before = [f"now:   {_survival(preview.before)}"] if preview.before is not None else []
    return [
        f"moves {preview.moved:.1%} of all shards, about {size_text(preview.bytes_moved)}",
        *before,
        f"then:  {_survival(preview.after)}",
        "",
        *layout_lines(preview.after)[3:],
    ]
