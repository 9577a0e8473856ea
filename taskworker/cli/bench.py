"""The command that measures a user's own pool or store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.bounds import count_of
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, size_text

if TYPE_CHECKING:
    from taskworker.measuring.figures import Figures, Limit
    from taskworker.measuring.places import Place

_SIZE_MAX = 1 << 30
_CALLERS_MAX = 256
_TITLE = (
    f"{'':4}  {'SIZE':>9}  {'CALLERS':>7}  {'COUNT':>7}  {'MEDIAN':>9}  {'90 %':>9}  {'99 %':>9}  {'SLOWEST':>9}  "
    f"{'RATE':>11}  LIMIT"
)


def bench(
    session: Session,
    sizes: Annotated[str, typer.Option(help="Sizes of files, such as 4KiB,64MiB.", metavar="SIZE,...")] = "4KiB,64MiB",
    callers: Annotated[
        str, typer.Option(help="How many callers work at the same time, one measurement each.", metavar="COUNT,...")
    ] = "1,8",
    seconds: Annotated[
        float, typer.Option(help="Time for each measurement.", metavar="SECONDS", min=0.1, max=3600)
    ] = 5,
    function: Annotated[
        str | None,
        typer.Option(help="Call this function, too. It is called many times.", metavar="NAME", show_default=False),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg", help="An argument of --function: a JSON value, or a bare word; repeatable.", metavar="ARG"
        ),
    ] = None,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Only delete what runs that were killed have left.", show_default=False),
    ] = False,
) -> None:
    """Measure puts and gets of files, and calls of a function, as a program here would meet them.

    The files are yours, with names that begin with .bench/, and are deleted in the end, also after Ctrl-C. Their space
    is free after the next collect. The limit is what this machine does at best with one caller, measured in the same
    run: its disk for a store, its loopback for a pool on this machine, connecting for small files elsewhere.

    Examples:
        taskworker bench
        taskworker bench --sizes 1MiB --callers 1,4,16 --seconds 10
        taskworker bench --function calculate --arg 3 --arg 4 --json
    """
    chosen_sizes = _numbers("--sizes", sizes, _SIZE_MAX)
    chosen_callers = _numbers("--callers", callers, _CALLERS_MAX)
    if arg and function is None:
        raise Failure("--arg needs --function: say which", ExitCode.USAGE)
    from taskworker.measuring.places import PREFIX, delete_all

    with _places(session) as (place, cleaning, limits):
        if clean:
            deleted = delete_all(cleaning, PREFIX)
            session.terminal.result({"deleted": deleted}, f"{deleted:,} deleted")
            return
        from taskworker.measuring.suite import Plan, Suite

        with _call(session, function, arg or []) as call:
            plan = Plan(chosen_sizes, chosen_callers, seconds, limits, call, limits(0)[1] if call else None)
            with Suite(place, cleaning, plan) as suite:
                session.terminal.listing(_TITLE, ((asdict(each), _line(each)) for each in _told(session, suite.run())))
    session.terminal.note(f"{suite.deleted:,} files were left to delete, and are deleted")


def _told(session: Session, found: Iterator[Figures]) -> Iterator[Figures]:
    for each in found:
        if each.failed:
            session.terminal.error(f"{each.failed:,} of these failed, first: {each.error}")
        yield each


@contextlib.contextmanager
def _places(
    session: Session,
) -> Iterator[tuple[Place, Place, Callable[[int], tuple[Limit | None, Limit | None]]]]:
    """Where to measure, the same by another connection, and what limits a put and a get of a size."""
    from taskworker.cli.embedded import open_store
    from taskworker.client import Client
    from taskworker.measuring import limits
    from taskworker.measuring.places import PoolPlace, StorePlace

    if session.is_embedded():
        path = session.store_path()
        with contextlib.closing(open_store(path, session.key_file())) as store:
            place = StorePlace(store, session.user)
            profile = store.stats().profile
            yield place, place, lambda size: limits.disk_limits(path, size, -(-size * profile.n // profile.k))
        return
    address = session.pool_address()
    with Client(address, key=session.key_file()) as client, Client(address, key=session.key_file()) as other:
        user = session.user
        yield PoolPlace(client, user), PoolPlace(other, user), lambda size: _pool_limits(address, size)


def _pool_limits(address: str, size: int) -> tuple[Limit | None, Limit | None]:
    from taskworker.auth.contexts import is_on_this_machine
    from taskworker.measuring import limits

    if is_on_this_machine(address):
        loopback = limits.loopback_limit(size)
        return loopback, loopback
    if size > 1 << 16:
        return None, None  # how fast the way to it is could only be told by something that takes bytes there
    connect = limits.connect_limit(address)
    return connect, connect


@contextlib.contextmanager
def _call(session: Session, function: str | None, arguments: list[str]) -> Iterator[Callable[[], None] | None]:
    if function is None:
        yield None
        return
    from taskworker.client import Client

    with Client(session.pool_address()) as client:
        user = session.user

        def call() -> None:
            client.call_texts(function, arguments, {}, user_id=user)

        yield call


def _numbers(option: str, text: str, most: int) -> list[int]:
    found = [count_of(option, item) for item in text.split(",")]
    if any(not 0 < each <= most for each in found):
        raise Failure(f"{option} {one_line(text)}: from 1 to {most:,}", ExitCode.USAGE)
    return found


def _line(each: Figures) -> str:
    if each.bytes_per_s is None or (each.size or 0) < 1 << 20:
        rate = f"{each.per_s:,.0f}/s" if each.per_s >= 10 else f"{each.per_s:.2f}/s"
    else:
        rate = f"{each.bytes_per_s / 1e6:,.0f} MB/s"
    limit = ""
    if each.limit is not None and each.of_limit is not None:
        limit = f"{each.limit.what} {_time(each.limit.seconds)}: {each.of_limit:.1%}"
    size = "" if each.size is None else size_text(each.size)
    times = "  ".join(f"{_time(one):>9}" for one in (each.median_s, each.p90_s, each.p99_s, each.slowest_s))
    return (
        f"{each.operation:4}  {size:>9}  {each.callers:>7,}  {each.count:>7,}  {times}  {rate:>11}  {limit}"
    ).rstrip()


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:,.2f} ms" if seconds < 0.1 else f"{seconds:,.2f} s"
