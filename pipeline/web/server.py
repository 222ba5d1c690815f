"""Serve a web page on this machine only: 127.0.0.1, under this host name, to this origin."""

import errno
import logging
import secrets
import socket
from collections.abc import Callable
from html import escape

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import BusyError, PipelineError
from pipeline.images.source import MAX_FILE

HOST = "127.0.0.1"
MAX_BODY = MAX_FILE + 100_000  # bytes of a request: an image file in a form
MISSING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 200"><text x="100" y="104" '
    'text-anchor="middle" font-family="sans-serif" font-size="13" fill="#56636f">{}</text></svg>'
)
Page = Callable[[], object]
Picture = Callable[[str, int, int], bytes | str]
# Vue compiles templates, hence unsafe-eval; scripts in the page need the nonce of its response.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def bind(port: int) -> socket.socket:
    """Return a socket that listens on a port of 127.0.0.1, 0 for a free one; or raise BusyError."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()  # a browser may connect before the page is ready
    except OSError as error:
        bound.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise BusyError(f"port {port} is in use or reserved: choose another --port") from error
    return bound


def serve(bound: socket.socket, page: Page, picture: Picture) -> None:
    """Serve a page until Ctrl-C, which raises KeyboardInterrupt; parameters as for `add_routes`."""
    add_routes(page, picture)
    app = FastAPI(openapi_url=None)
    options = {"tailwind": False, "gzip_middleware_factory": None, "show_welcome_message": False}
    ui.run_with(app, language="en-US", **options)
    guarded = Guard(app, port=bound.getsockname()[1])
    config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[bound])


def add_routes(page: Page, picture: Picture) -> None:
    """Add the page, built for each window, and pictures; nothing else of the disk is served.

    ``picture`` : (token, row, side) -> a JPEG, or the reason why there is none.
    """

    def respond(token: str, row: int, side: int = 256) -> Response:
        shown = picture(token, row, side)
        if isinstance(shown, str):
            return Response(MISSING.format(escape(shown)), 404, media_type="image/svg+xml")
        return Response(shown, media_type="image/jpeg", headers={"Cache-Control": "max-age=300"})

    nicegui_app.add_api_route("/picture/{token}/{row}", respond)
    ui.page("/")(lambda: page() and None)
    logging.getLogger("nicegui").addFilter(_is_bug)


def _is_bug(record: logging.LogRecord) -> bool:
    """Return whether a failure is not expected, and not of a result that Ctrl-C left out."""
    is_expected = record.exc_info and isinstance(record.exc_info[1], PipelineError)
    return not (is_expected or nicegui_app.is_stopping or nicegui_app.is_stopped)


class Guard:
    """Refuse requests of other hosts and origins, and large ones; add a content security policy.

    A site in the same browser can send requests here under its own name (DNS rebinding) and open
    websockets: the headers Host and Origin say so.
    """

    def __init__(self, app: ASGIApp, *, port: int) -> None:
        self.app = app
        self._hosts = (f"{HOST}:{port}", f"localhost:{port}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif (refusal := self._refusal(Headers(scope=scope))) is None:
            await self.app(scope, receive, _protected(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        """Return the status and the reason to refuse a request, or None."""
        host = headers.get("host")
        if host not in self._hosts:
            return 403, f"open http://{self._hosts[0]}"
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "requests of other sites are refused"
        if "transfer-encoding" in headers:
            return 411, "a request needs its length"
        if int(headers.get("content-length", "0")) > MAX_BODY:
            return 413, f"larger than {MAX_BODY:,} bytes"
        return None


def _protected(send: Send) -> Send:
    """Return a ``send`` that adds the headers, and the nonce to the scripts of a page."""
    nonce = secrets.token_urlsafe(16)
    page: Message | None = None  # the start of its response, until its length is known
    body = b""

    async def protected(message: Message) -> None:
        nonlocal page, body
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS | {"Content-Security-Policy": POLICY.format(nonce=nonce)})
            if headers.get("content-type", "").startswith("text/html"):
                page = message
                return
        elif page is not None and message["type"] == "http.response.body":
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            # Names of files and classes are escaped in a page: these are its own scripts.
            body = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())
            MutableHeaders(scope=page)["content-length"] = str(len(body))
            await send(page)
            message = {"type": "http.response.body", "body": body}
        await send(message)

    return protected
