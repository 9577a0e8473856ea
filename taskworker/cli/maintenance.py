"""The commands about the store itself: status, scrub, repair, collect, rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.functions import function_summary, host_summary
from taskworker.cli.pool_status import pool_status_lines
from taskworker.cli.screen import watch
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, plural, size_text, time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage import Damage, ScrubReport, StoreStats, VolumeStats
    from taskworker.client.pool import PoolClient, PoolStatus

_DAMAGE_SHOWN_MAX = 10


def status(
    session: Session,
    watched: Annotated[
        bool,
        typer.Option("--watch", help="Keep the screen up to date until Ctrl-C (pools only).", show_default=False),
    ] = False,
) -> None:
    """Show what the pool or store holds, the state of its workers or volumes, and which losses it survives.

    Examples:
        taskworker status
        taskworker status --watch
        taskworker --store ./data status --json
    """
    if session.is_embedded():
        with session.backend() as backend:
            _show_store(session, backend.stats())
        return
    from taskworker.client.pool import PoolClient

    with PoolClient(session.pool_address()) as client:
        pool = client.status()
        if pool is not None:
            _show_pool(session, client, pool, watched=watched)
            return
    with session.backend() as backend:
        _show_store(session, backend.stats())


def _show_store(session: Session, stats: StoreStats) -> None:
    session.terminal.result(document(stats), *_status_lines(stats))


def _show_pool(session: Session, client: PoolClient, status: PoolStatus, *, watched: bool) -> None:
    if not watched:
        more, lines = _functions_of(session)
        told = document(status) | more
        session.terminal.result(told, *pool_status_lines(status), *lines)
        return
    if session.terminal.as_json:
        raise Failure("--watch and --json exclude each other: give one", ExitCode.USAGE)

    from storage.errors import StorageError

    def look() -> list[str]:
        try:
            return [*pool_status_lines(client.status() or status), *_functions_of(session)[1]]
        except StorageError as error:
            return [f"the pool does not answer ({one_line(str(error))}); trying again"]

    watch(look)


def _functions_of(session: Session) -> tuple[dict[str, object], list[str]]:
    """The functions and their workers, as a document and as lines; empty if the pool cannot list them."""
    from storage.errors import StorageError
    from taskworker.client.functions import FunctionClient

    try:
        with FunctionClient(session.pool_address()) as client:
            found, hosts = client.functions(), client.hosts()
    except StorageError as error:
        return {"functions": None, "hosts": None}, ["", f"! functions cannot be listed now: {one_line(str(error))}"]
    told: dict[str, object] = {
        "functions": [document(one) for one in found],
        "hosts": [document(one) for one in hosts],
    }
    return told, [*host_summary(hosts), *function_summary(found)]


def _status_lines(stats: StoreStats) -> list[str]:
    profile = stats.profile
    ratio = f", {stats.stored_bytes / stats.logical_bytes:.2f} times the files" if stats.logical_bytes else ""
    lines = [
        f"store     {stats.store_id}",
        f"files     {plural(stats.files, 'file')} of {size_text(stats.logical_bytes)}, "
        f"{plural(stats.versions, 'version')}",
        f"stored    {size_text(stats.stored_bytes)}{ratio}",
        f"profile   any {profile.k} of {profile.n} shards suffice, coded with {stats.accelerator}",
        f"health    {_health(stats)}",
        "",
        f"{'VOLUME':>6}  {'STATE':10}  {'SHARDS':>10}  {'USED':>10}  {'LIVE':>10}  {'DISK FREE':>10}  PATH",
        *(_volume_line(volume) for volume in stats.volumes),
        *(f"  {volume.slot}: {one_line(volume.cause)}" for volume in stats.volumes if volume.cause),
    ]
    if stats.recent_damage:
        lines += ["", "damage found lately:", *_damage_lines(stats.recent_damage)]
    return lines


def _health(stats: StoreStats) -> str:
    if stats.needs_rebuild:
        return "the catalog is missing: run `taskworker rebuild`"
    if stats.unfinished:
        return f"files can only be read: {one_line(stats.unfinished)}"
    if stats.behind:
        return "the catalog is older than the volumes, files can only be read: run `taskworker rebuild`"
    waiting = [volume for volume in stats.volumes if volume.state in ("incomplete", "offline")]
    unwritable = [volume for volume in stats.volumes if volume.takes_no_writes]
    more = "more " if waiting else ""
    survives = {
        0: f"survives no {more}loss of a volume",
        1: f"survives the loss of one {more}volume, whichever it is",
    }.get(max(0, stats.losses_survivable), f"survives the loss of any {stats.losses_survivable} {more}volumes")
    if unwritable:
        survives += f"; {plural(len(unwritable), 'volume')} can only be read, see below"
    if not waiting:
        return survives
    then = "once these take writes, " if unwritable else ""
    return f"{plural(len(waiting), 'volume')} not ok, {survives}; {then}run `taskworker repair`"


def _volume_line(volume: VolumeStats) -> str:
    return (
        f"{volume.slot:>6}  {volume.state:10}  {volume.shards:>10,}  {size_text(volume.bytes_used):>10}  "
        f"{size_text(volume.bytes_live):>10}  {size_text(volume.bytes_free):>10}  {one_line(str(volume.path))}"
    )


def _damage_lines(damaged: Sequence[Damage], total: int | None = None) -> list[str]:
    shown = [f"  {time_text(damage.time_ms)}  {one_line(damage.text)}" for damage in damaged[:_DAMAGE_SHOWN_MAX]]
    left = (len(damaged) if total is None else total) - len(shown)
    return [*shown, f"  and {left:,} more"] if left > 0 else shown


def scrub(session: Session) -> None:
    """Verify every stored shard. Exit code 1 if any is corrupt or missing; `repair` rebuilds it.

    Also reports versions that cannot be read; the only remedy for these is to delete the file. Intact shards on another
    worker than they should be, such as one that stood in, are no damage: repair moves them.

    Examples:
        taskworker scrub
        taskworker scrub --json || taskworker repair
    """
    with session.backend() as backend, session.terminal.progress("scrub") as progress:
        report = backend.scrub(progress=progress)
    session.terminal.result(document(report) | {"clean": report.clean}, *scrub_lines(report))
    if not report.clean:
        raise typer.Exit(ExitCode.FAILED)


def scrub_lines(report: ScrubReport) -> list[str]:
    """What a scrub has found, for people."""
    checked = f"{plural(report.shards_checked, 'shard')} checked, {size_text(report.bytes_checked)}"
    damaged = report.rotten + report.missing
    found = "all intact" if report.clean else f"{report.rotten:,} rotten, {report.missing:,} missing"
    lines = [f"{checked}: {found}"]
    if report.unreadable:
        lines[0] += f", {plural(report.unreadable, 'version')} unreadable"
    if report.unavailable:
        lines[0] += f", {plural(report.unavailable, 'shard')} out of reach now"
    if report.misplaced:
        lines[0] += f", {report.misplaced:,} not in place yet"
    if not report.clean:
        lines += _damage_lines(report.damaged, damaged + report.unreadable + report.unavailable)
    if damaged:
        lines.append("`taskworker repair` rebuilds the rotten and missing shards")
    if report.misplaced:
        lines.append("shards that are not in place are intact on other workers, and repair moves them")
    return lines


def repair(session: Session) -> None:
    """Rebuild missing and corrupt shards, also on a new, empty volume.

    A pool repairs by itself, after waiting --grace seconds for workers that are away; until then, this command leaves
    their shards out as well. Exit code 5 if an object is lost, 1 if some still lack shards.

    Examples:
        taskworker repair
    """
    with session.backend() as backend, session.terminal.progress("repair", unit="objects") as progress:
        report = backend.repair(progress=progress)
    lines = [
        f"{plural(report.objects_examined, 'object')} examined, {plural(report.shards_rebuilt, 'shard')} rebuilt, "
        f"{size_text(report.bytes_rebuilt)}"
    ]
    if report.deferred:
        waiting = plural(report.deferred, "object")
        lines.append(f"{waiting} not repaired yet: workers that are away may come back within the pool's --grace")
    if report.unavailable:
        waiting = plural(report.unavailable, "object")
        lines.append(f"{waiting} cannot be read now ({one_line(report.unavailable_why)}); repair again later")
    lines += [f"some shards could not be written: {one_line(why)}; then repair again" for why in report.unwritable]
    if report.lost_count:
        lines += [f"{plural(report.lost_count, 'object')} lost:", *_damage_lines(report.lost, report.lost_count)]
    session.terminal.result(document(report) | {"complete": report.complete}, *lines)
    if report.lost_count:
        raise typer.Exit(ExitCode.DATA_LOSS)
    if not report.complete:
        raise typer.Exit(ExitCode.FAILED)


def collect(
    session: Session,
    grace: Annotated[
        float | None,
        typer.Option(
            help="How long to keep data of interrupted pushes, so that you can continue them (default: a day).",
            metavar="SECONDS",
            min=0,
        ),
    ] = None,
) -> None:
    """Free the space of data that no file needs any more.

    Examples:
        taskworker collect
        taskworker collect --grace 0
    """
    with session.backend() as backend, session.terminal.progress("collect", unit="objects") as progress:
        report = backend.collect(grace_s=grace, progress=progress)
    lines = [f"{plural(report.objects_removed, 'object')} removed, {size_text(report.bytes_freed)} freed"]
    if report.stores_missed:
        missed = f"{report.stores_missed} volumes or workers were not reached"
        lines.append(f"{missed}: collect again when all are back; a pool does so by itself")
    session.terminal.result(document(report), *lines)


def rebuild(session: Session) -> None:
    """Rebuild a lost catalog from the volumes of a store, or from the workers of a pool.

    If a pool's directory is lost, first start it with `taskworker pool --rebuild POOL_ID`. Exit code 1 if volumes or
    workers that may hold more are away: files are then read-only until you bring them back and rebuild again.

    Examples:
        taskworker --store ./data rebuild
        taskworker rebuild --pool 127.0.0.1:50051
    """
    opened = session.embedded() if session.is_embedded() else session.backend()
    with opened as backend, session.terminal.progress("rebuild", unit="objects") as progress:
        report = backend.rebuild(progress=progress)
    lines = [f"{plural(report.files, 'file')}, {plural(report.versions, 'version')} found"]
    if report.skipped:
        lines += ["left out:", *(f"  {one_line(text)}" for text in report.skipped)]
    if report.undecided:
        lines += [
            "not finished, so files can only be read:",
            *(f"  {one_line(text)}" for text in report.undecided),
            "bring back what is away, or drop it (`taskworker forget` a worker, `taskworker repair` a volume), "
            "then run rebuild again",
        ]
    session.terminal.result(document(report), *lines)
    if report.undecided:
        raise typer.Exit(ExitCode.FAILED)


def rotate_key(session: Session) -> None:
    """Give the user a new key, which encrypts what is stored from now on in an encrypted store or pool.

    Former keys stay, and open what they encrypted. In a pool, operators may name other users. `taskworker secret
    rotate-master` replaces a pool's master key. To replace that of a store, put a new line above the old one in the key
    file, run any command on the store, and then remove the old line.

    Examples:
        taskworker rotate-key
        taskworker rotate-key --user ann
        taskworker rotate-key --store ./data --key-file ./key
    """
    if session.is_embedded():
        with session.embedded() as store:
            epoch = store.rotate_key()
    else:
        from taskworker.client.keys import KeyClient

        with KeyClient(session.pool_address()) as client:
            epoch = client.rotate(session.user)
    session.terminal.result({"user": session.user, "epoch": epoch}, f"{one_line(session.user)} has key number {epoch}")
