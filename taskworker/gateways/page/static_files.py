"""The page's own style sheet, scripts and icon, in memory."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_KEPT = "private, max-age=31536000, immutable"
_DIGEST_CHARACTERS = 12


class _File(NamedTuple):
    content: bytes
    kind: str
    digest: str


class StaticFiles:
    """What browsers need besides pages. Nothing is looked up by a path of a request."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        for one in (files("taskworker.gateways.page") / "static").iterdir():
            kind = _KINDS.get(one.name[one.name.rfind(".") :])
            if kind is not None:
                content = one.read_bytes()
                digest = sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
                self._files[one.name] = _File(content, f"{kind}; charset=utf-8", digest)

    def url(self, name: str) -> str:
        """Where a file is; another place once its content is another."""
        return f"/static/{name}?{self._files[name].digest}"

    async def serve(self, request: Request) -> Response:
        """Answer a request for one."""
        found = self._files.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("There is no such file.\n", 404)
        is_current = request.url.query == found.digest
        headers = {"cache-control": _KEPT if is_current else "no-cache", "content-type": found.kind}
        return Response(found.content, headers=headers)
