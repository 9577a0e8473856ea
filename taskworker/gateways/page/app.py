"""The page as an ASGI application: who asks for what, and in which form the answer comes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from storage.clocks import monotonic_s, wall_ms
from storage.errors import PermissionDenied, StorageError
from taskworker.client.pool import PoolClient
from taskworker.errors import ServerBusy, Unauthenticated
from taskworker.gateways.page import transfers
from taskworker.gateways.page.guard import Guard, file_headers, form_of
from taskworker.gateways.page.history import History, Watch
from taskworker.gateways.page.live import ENDED, STREAMS_EACH_MAX, STREAMS_MAX, LiveReply, events
from taskworker.gateways.page.menu import entries, first_path
from taskworker.gateways.page.problems import status_of
from taskworker.gateways.page.rendering import Rendering, url
from taskworker.gateways.page.sessions import Notice, Session, Sessions, SignInCodes
from taskworker.gateways.page.signing_in import SigningIn, local_path
from taskworker.gateways.page.static_files import StaticFiles
from taskworker.gateways.page.viewing import Action, Asked, Done, Region, View, regions_of
from taskworker.gateways.page.views import ACTIONS, VIEWS
from taskworker.gateways.turns import Turns

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_THREADS = 32
_SIGN_IN_THREADS = 16
"""Look-ups of tokens have threads of their own: who is not signed in holds up nobody who is."""
_NO_PAGE = "There is no such page."
_TRANSFER_THREADS = 2 * transfers.TRANSFERS_MAX

Answer = Callable[[Request, Session], Awaitable[Response]]


class PageApp:
    """Serves the page by ASGI.

    Args:
        address: where the server is that it shows.
        names: host names that browsers know the page by.
        is_secure: whether it is served by TLS.
        watcher: a client whose token may see the pool's figures, so that charts go on while nobody is signed in; None:
            charts show what was seen while somebody looked.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        address: str,
        *,
        names: Iterable[str] = (),
        is_secure: bool = False,
        watcher: PoolClient | None = None,
        clock_s: Callable[[], float] = monotonic_s,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._now_ms = now_ms
        self._sessions = Sessions(clock_s)
        self._history = History(now_ms)
        self._watch = None if watcher is None else Watch(watcher, self._history)
        self._static = StaticFiles()
        self._rendering = Rendering(now_ms)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="page")
        self._transfer_threads = ThreadPoolExecutor(_TRANSFER_THREADS, thread_name_prefix="page-files")
        self._sign_in_threads = ThreadPoolExecutor(_SIGN_IN_THREADS, thread_name_prefix="page-sign-in")
        self._streams = 0
        self._stopping = asyncio.Event()
        self._transfers: Counter[str] = Counter()  # by user
        self.codes = SignInCodes(clock_s)
        turns = Turns(_SIGN_IN_THREADS, "people sign in")
        signing_in = SigningIn(
            address, self._sessions, self.codes, turns, self._rendered, self._looked_up, is_secure=is_secure
        )
        self._cookies = signing_in.cookies
        routes = [
            *signing_in.routes(),
            Route("/static/{name}", self._static.serve),
            Route("/sign-out", self._for_signed_in(self._sign_out), methods=["POST"]),
            Route("/file/content", self._for_signed_in(self._download)),
            Route("/files/upload", self._for_signed_in(self._upload), methods=["PUT"]),
            *(Route(view.path, self._for_signed_in(self._showing(view))) for view in VIEWS),
            *(Route(one.path, self._for_signed_in(self._doing(one)), methods=["POST"]) for one in ACTIONS),
        ]
        handlers: dict[Any, Any] = {404: self._not_found, 405: self._not_found, Exception: self._failed}
        self._guarded = Guard(Starlette(routes=routes, exception_handlers=handlers), names, is_secure=is_secure)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._guarded(scope, receive, send)

    def stop(self) -> None:
        """End what would go on without end, as the server is about to stop."""
        self._stopping.set()

    def close(self) -> None:
        """End all sessions, and what works for them."""
        if self._watch is not None:
            self._watch.close()
        self._sessions.end_all()
        self._threads.shutdown(cancel_futures=True)
        self._transfer_threads.shutdown(cancel_futures=True)
        self._sign_in_threads.shutdown(cancel_futures=True)

    # -- who asks -----------------------------------------------------------------------------------

    def _for_signed_in(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """What answers requests of who is signed in, and sends others to the page where one does."""

        async def endpoint(request: Request) -> Response:
            is_live = _wants_events(request)
            session = self._sessions.find(self._cookies.shown(request), is_use=not is_live)
            if session is None:
                return self._to_sign_in(request)
            try:
                return await answer(request, session)
            except Unauthenticated:
                self._sessions.end(session)
                return self._to_sign_in(request)
            except StorageError as error:
                return self._problem(request, session, error)

        return endpoint

    def _to_sign_in(self, request: Request) -> Response:
        if _wants_events(request):
            return Response(ENDED, media_type="text/event-stream")
        if request.method == "PUT":
            return JSONResponse({"problem": "you are no longer signed in; sign in, and upload the file again"}, 401)
        here = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
        to = url("/sign-in", next="" if request.method != "GET" or here == "/" else here)
        return RedirectResponse(to, 303)

    def _problem(self, request: Request, session: Session, error: StorageError) -> Response:
        status = status_of(error)
        if status >= 500:
            _log.warning("%s %s failed: %s", request.method, request.url.path, error)
        if request.method == "PUT":
            return JSONResponse({"problem": str(error)}, status)
        return self._page(request, "problem.html", session, "Problem", status, problem=str(error))

    # -- what is shown ------------------------------------------------------------------------------

    def _showing(self, view: View) -> Answer:
        async def show(request: Request, session: Session) -> Response:
            asked = self._asked(session, dict(request.query_params))
            if _wants_events(request):
                return self._live(view, asked, session)
            session.principal = await self._run(session.acting.principal)
            if view.right is not None and view.path == "/" and not session.principal.has(view.right):
                return RedirectResponse(first_path(session.principal), 303)
            values, regions = await self._run(regions_of, view, self._asked(session, asked.fields), self._rendering)
            return self._page(request, view.template, session, view.title, 200, view, regions, **values)

        return show

    def _live(self, view: View, asked: Asked, session: Session) -> Response:
        is_full = session.streams >= STREAMS_EACH_MAX or self._streams >= STREAMS_MAX
        if is_full or not view.regions or not view.is_live(asked):
            return Response(status_code=204)

        async def load() -> list[Region]:
            return (await self._run(regions_of, view, asked, self._rendering))[1]

        def count(step: int) -> None:
            self._streams += step
            session.streams += step

        count(1)
        told = events(partial(self._sessions.is_on, session), load, view.every_s, self._stopping)
        return LiveReply(told, lambda: count(-1))

    def _page(
        self,
        request: Request,
        template: str,
        session: Session,
        title: str,
        code: int,
        view: View | None = None,
        regions: Iterable[Region] = (),
        /,
        **values: Any,
    ) -> HTMLResponse:
        parts = {region.name: region.element for region in regions}
        shown = {
            "principal": session.principal,
            "owner": session.principal.user,
            **values,
            "title": title,
            "menu": entries(session.principal, view.section if view is not None else ""),
            "notices": session.take_notices(),
            "csrf": Markup('<input type="hidden" name="csrf" value="{}">').format(session.csrf),
            "csrf_text": session.csrf,
            "is_live": bool(parts),
            "region": parts.__getitem__,
            "fields": dict(request.query_params),
        }
        return self._rendered(template, code, **shown)

    def _rendered(self, template: str, code: int = 200, /, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._rendering(template, **values, static=self._static.url), code)

    async def _not_found(self, request: Request, _error: Exception) -> Response:
        session = self._sessions.find(self._cookies.shown(request), is_use=False)
        if session is None:
            return self._rendered("signed_out_problem.html", 404, title="Not found", problem=_NO_PAGE)
        return self._page(request, "problem.html", session, "Not found", 404, problem=_NO_PAGE, status=404)

    async def _failed(self, request: Request, _error: Exception) -> Response:
        text = "The page failed unexpectedly; its log has the details."
        return self._rendered("signed_out_problem.html", 500, title="Problem", problem=text)

    # -- what is done -------------------------------------------------------------------------------

    def _doing(self, action: Action) -> Answer:
        async def do(request: Request, session: Session) -> Response:
            fields = await form_of(request)
            _require_own(fields.pop("csrf", ""), session)
            try:
                done = await self._done(action, session, fields)
            except Unauthenticated:
                raise
            except StorageError as error:
                # Back to where the form is, which says what went wrong.
                session.notices.append(Notice(str(error), is_problem=True))
                return RedirectResponse(local_path(fields.get("back", "")), 303)
            session.notices.append(done.notice)
            return RedirectResponse(done.to, 303)

        return do

    async def _done(self, action: Action, session: Session, fields: dict[str, str]) -> Done:
        asked = self._asked(session, fields)
        if not action.is_long:
            return await self._run(action.work, asked)
        with self._transferring(session):
            return await asyncio.get_running_loop().run_in_executor(self._transfer_threads, action.work, asked)

    async def _sign_out(self, request: Request, session: Session) -> Response:
        _require_own((await form_of(request)).get("csrf", ""), session)
        self._sessions.end(session)
        reply = RedirectResponse("/sign-in", 303)
        self._cookies.take(reply, request)
        return reply

    async def _upload(self, request: Request, session: Session) -> Response:
        _require_own(request.headers.get("x-csrf", ""), session)
        asked = self._asked(session, dict(request.query_params))
        with self._transferring(session):
            version = await transfers.upload(
                request,
                session.acting.files(),
                self._transfer_threads,
                owner=asked.owner,
                name=asked.fields.get("name", ""),
            )
        found = url("/file", owner=asked.owner, id=version.file_id)
        return JSONResponse({"name": version.filename, "url": found, "unchanged": version.unchanged})

    async def _download(self, request: Request, session: Session) -> Response:
        asked = self._asked(session, dict(request.query_params))

        def opened() -> Any:
            version_id = asked.field("version") or None
            # A browser takes as long as it takes for all; each piece has a time of its own.
            return session.acting.files().open(
                asked.field("id"), user_id=asked.owner, version_id=version_id, timeout_s=transfers.UPLOAD_S
            )

        ending = contextlib.ExitStack()
        ending.enter_context(self._transferring(session))
        with contextlib.ExitStack() as unless_sent:
            unless_sent.callback(ending.close)
            file = await self._run(opened)
            headers = file_headers(file.version.filename, file.size)
            if request.method == "HEAD":
                await self._run(file.close)
                return Response(headers=headers)
            reply = transfers.FileReply(file, self._transfer_threads, headers, ending.close)
            unless_sent.pop_all()
        return reply

    @contextlib.contextmanager
    def _transferring(self, session: Session) -> Iterator[None]:
        user = session.principal.user
        if self._transfers[user] >= transfers.TRANSFERS_EACH_MAX or self._transfers.total() >= transfers.TRANSFERS_MAX:
            raise ServerBusy("as many files and calls are on their way as may be; try again when some have ended")
        self._transfers[user] += 1
        try:
            with self._sessions.used(session):
                yield
        finally:
            self._transfers[user] -= 1
            self._transfers += Counter()  # drops users with none

    def _asked(self, session: Session, fields: Any) -> Asked:
        return Asked(session.acting, session.principal, fields, self._history, session.csrf, self._now_ms())

    async def _run(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _looked_up(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._sign_in_threads, work, *arguments)


def _wants_events(request: Request) -> bool:
    return request.method == "GET" and "text/event-stream" in request.headers.get("accept", "")


def _require_own(csrf: str, session: Session) -> None:
    if not hmac.compare_digest(csrf.encode(), session.csrf.encode()):
        raise PermissionDenied("this form is of an earlier session; open its page again, and repeat what you did")
