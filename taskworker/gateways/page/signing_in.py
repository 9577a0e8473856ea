"""Signing in: by a token in a form, or by a link that works once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from storage.errors import InvalidArgument, StorageError
from taskworker.auth.user_tokens import is_token
from taskworker.errors import Unauthenticated
from taskworker.gateways.page.acting import Acting
from taskworker.gateways.page.guard import form_of
from taskworker.gateways.page.problems import status_of
from taskworker.gateways.page.sessions import LASTING_S, Sessions, SignInCodes
from taskworker.gateways.turns import Turns
from taskworker.hosts import host_of

Render = Callable[..., HTMLResponse]
Run = Callable[..., Awaitable[Any]]
_BEARER = "Bearer "
_USED = "this link was used already, or is too old: `taskworker ui` makes another"


class Cookies:
    """The cookie that a session is known by.

    Args:
        is_secure: whether the page is served by TLS. If not, its name has the port in it, as browsers send cookies to
            all ports of a host.
    """

    def __init__(self, *, is_secure: bool) -> None:
        self._is_secure = is_secure

    def shown(self, request: Request) -> str:
        """What a browser shows; empty: nothing."""
        return request.cookies.get(self._name(request), "")

    def give(self, reply: Response, request: Request, text: str) -> None:
        """Have the browser show this from now on."""
        reply.set_cookie(
            self._name(request),
            text,
            max_age=int(LASTING_S),
            path="/",
            secure=self._is_secure or _is_by_tls(request),
            httponly=True,
            samesite="strict",
        )

    def take(self, reply: Response, request: Request) -> None:
        """Have the browser show nothing from now on."""
        reply.delete_cookie(self._name(request), path="/", secure=self._is_secure, httponly=True, samesite="strict")

    def _name(self, request: Request) -> str:
        return "__Host-taskworker" if self._is_secure else f"taskworker-{request.url.port or 80}"


def _is_by_tls(request: Request) -> bool:
    """Whether the browser, which sends this form, has the page by TLS: a proxy may serve it so."""
    return request.headers.get("origin", "").lower().startswith("https://")


class SigningIn:
    """The pages on which people sign in.

    Args:
        address: where the server is.
        sessions: of who is signed in.
        codes: of links.
        turns: at looking up tokens.
        render: makes a page of a template.
        run: runs what takes a while.
        is_secure: whether the page is served by TLS.
    """

    def __init__(
        self,
        address: str,
        sessions: Sessions,
        codes: SignInCodes,
        turns: Turns,
        render: Render,
        run: Run,
        *,
        is_secure: bool,
    ) -> None:
        self._address = address
        self._sessions = sessions
        self._codes = codes
        self._render = render
        self._run = run
        self._turns = turns
        self.cookies = Cookies(is_secure=is_secure)

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("/sign-in", self._show),
            Route("/sign-in", self._by_token, methods=["POST"]),
            Route("/sign-in/link", self._make_link, methods=["POST"]),
            Route("/sign-in/{code}", self._show_link),
            Route("/sign-in/{code}", self._by_link, methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        return self._form(request.query_params.get("next", ""))

    def _form(self, following: str, problem: str = "", status: int = 200) -> Response:
        return self._render(
            "sign_in.html", status, title="Sign in", problem=problem, following=following, address=self._address
        )

    async def _by_token(self, request: Request) -> Response:
        try:
            fields = await form_of(request)
        except InvalidArgument as error:
            return self._form("", str(error), 400)
        following, token = fields.get("next", ""), fields.get("token", "").strip()
        return await self._signed_in(request, lambda: token, following)

    async def _show_link(self, request: Request) -> Response:
        """Ask first: a browser, or a program that looks at links, may fetch it before anybody follows it."""
        code = request.path_params["code"]
        user = self._codes.user_of(code)
        if user is None:
            return self._form("", _USED, 410)
        return self._render("sign_in_link.html", title="Sign in", code=code, user=user, address=self._address)

    async def _by_link(self, request: Request) -> Response:
        code = request.path_params["code"]
        if self._codes.user_of(code) is None:
            return self._form("", _USED, 410)
        return await self._signed_in(request, lambda: self._codes.redeem(code), "")

    async def _signed_in(self, request: Request, token: Callable[[], str | None], following: str) -> Response:
        """Sign in who has a token, which is asked for when it can be looked up; None: it was used meanwhile."""
        try:
            async with self._turns.one(host_of(request.client)):
                shown = token()
                if shown is None:
                    return self._form("", _USED, 410)
                acting, principal = await self._asked(shown)
        except Unauthenticated:
            return self._form(following, "this token is not valid, or no more", 401)
        except StorageError as error:
            return self._form(following, str(error), status_of(error))
        former = self._sessions.find(self.cookies.shown(request))
        if former is not None:
            self._sessions.end(former)
        text, _ = self._sessions.begin(acting, principal)
        reply = RedirectResponse(local_path(following), 303)
        self.cookies.give(reply, request, text)
        return reply

    async def _make_link(self, request: Request) -> Response:
        """For `taskworker ui`: trade a token for a link that works once, and for a short while."""
        shown = request.headers.get("authorization", "")
        if request.headers.get("origin") is not None or not shown.startswith(_BEARER):
            return JSONResponse({"problem": "this is for `taskworker ui`, which sends a token"}, 401)
        token = shown.removeprefix(_BEARER)
        try:
            async with self._turns.one(host_of(request.client)):
                acting, principal = await self._asked(token)
        except StorageError as error:
            return JSONResponse({"problem": str(error)}, status_of(error))
        acting.close()
        return JSONResponse({"path": f"/sign-in/{self._codes.make(token, principal.user)}", "user": principal.user})

    async def _asked(self, token: str) -> tuple[Acting, Any]:
        """Who has a token, as the server says."""
        if not is_token(token):
            raise InvalidArgument("tokens begin with `twu1.`: give the whole token, and nothing else")
        acting = Acting(self._address, token)
        try:
            return acting, await self._run(acting.principal)
        except BaseException:
            acting.close()
            raise


def local_path(path: str) -> str:
    """A path of this page; that of its first page if it is none, but leads elsewhere."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path
