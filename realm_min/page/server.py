"""The page's web server: a few files, and the requests of `running.py`. It speaks to this machine's own page alone.

Any page that is open in a browser may send requests to 127.0.0.1, and a name of its owner's may lead there. So what
comes under another Host is refused, as is what another origin sends, and what is not declared as JSON, which a foreign
page cannot declare without asking for leave. What the page may load is this server's alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..app.cli import one_line
from ..files.causes import machine_error
from .running import Running
from .saved import FILES, self_contained

LARGEST = 1 << 16  # bytes of a request
NAMES = ("127.0.0.1", "localhost")
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def application(running: Running) -> Starlette:
    """The page of running models."""

    def answered(name: str, data: bytes) -> Response:
        if name not in running.requests:
            return refused(404, f"there is no request {name[:40]!r}")
        return as_json(running.answer(name, data))

    def about(name: str, data: bytes) -> Response:
        return as_json(running.about())

    def saved(name: str, data: bytes) -> Response:
        html = self_contained(running, **running.arguments("ask", data))
        return Response(html.encode("utf-8"), media_type="text/html; charset=utf-8", headers=HEADERS)

    routes = [
        Route("/", file),
        Route("/api/about", endpoint(about), methods=["POST"]),
        Route("/api/save", endpoint(saved), methods=["POST"]),
        Route("/api/{name}", endpoint(answered), methods=["POST"]),
        Route("/{name}", file),
    ]
    return Starlette(routes=routes)


async def file(request: Request) -> Response:
    """A file of the page."""
    if fault := stranger(request):
        return refused(403, fault)
    name = request.path_params.get("name", "index.html")
    found = {path.name: path for path in FILES.iterdir()}.get(name)
    if found is None:
        return refused(404, "there is no such page")
    kind = TYPES[name.rpartition(".")[2]]
    return Response(found.read_bytes(), media_type=f"{kind}; charset=utf-8", headers=HEADERS)


def endpoint(answer: Callable[[str, bytes], Response]) -> Callable:
    """What serves a request by `answer(name, data)`, in a thread; bad input gets a sentence."""

    async def serve(request: Request) -> Response:
        if fault := stranger(request) or undeclared(request):
            return refused(403, fault)
        data = b""
        try:
            async for part in request.stream():
                data += part
                if len(data) > LARGEST:
                    return refused(413, f"the text is longer than {LARGEST:,} bytes: shorten it")
        except ClientDisconnect:  # nobody is left to be answered
            return refused(400, "the request ended before its end")
        try:
            return await run_in_threadpool(answer, request.path_params.get("name", ""), data)
        except Exception as error:
            if machine_error(error) is None and not isinstance(error, (ValueError, OSError)):
                raise  # a mistake of ours: the traceback goes to the terminal
            return refused(400, one_line(error))

    return serve


def stranger(request: Request) -> str:
    """Why a request is none of this page's, "" where it is."""
    host = request.headers.get("host", "")
    if host.rpartition(":")[0] not in NAMES and host not in NAMES:
        return "this page is asked for under the name 127.0.0.1 or localhost"
    if request.headers.get("origin", f"http://{host}") != f"http://{host}":
        return "this page answers no other page"
    if request.url.path != "/" and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "this page answers no other page"
    return ""


def undeclared(request: Request) -> str:
    """Why a request cannot be one of the page's own scripts'."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    return "" if kind == "application/json" else "requests are of the type application/json"


def as_json(value: Any, status: int = 200) -> Response:
    data = json.dumps(value, allow_nan=False)  # in ASCII: a lone surrogate that was asked comes back as it came
    return Response(data, status, HEADERS, "application/json")


def refused(status: int, why: str) -> Response:
    return as_json({"error": why}, status)
