"""Serve the page on this machine only: 127.0.0.1, this host name, this origin."""

import errno
import secrets
import socket

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import BusyError
from pipeline.images.source import MAX_FILE
from pipeline.page.open_run import OpenRun
from pipeline.page.window import Window
from pipeline.review import Review

HOST = "127.0.0.1"
MAX_BODY = MAX_FILE + 100_000  # bytes of a request: an image file and its form
# Vue compiles templates, hence unsafe-eval; scripts in the page need the nonce of its response.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_SIDE = 1024  # pixels of a picture
MISSING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 200"><text x="100" y="104" '
    'text-anchor="middle" font-family="sans-serif" font-size="13" fill="#56636f">{}</text></svg>'
)
HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def bind(port: int) -> socket.socket:
    """Return a socket that is bound to a port of 127.0.0.1, 0 for a free one; or BusyError."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError as error:
        bound.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise BusyError(f"port {port} is in use or reserved: choose another --port") from error
    return bound


def serve(bound: socket.socket, opened: OpenRun) -> None:
    """Serve the page until Ctrl-C, which raises KeyboardInterrupt."""
    add_routes(opened)
    app = FastAPI(openapi_url=None)
    ui.run_with(
        app,
        title="Review",
        language="en-US",
        tailwind=False,
        gzip_middleware_factory=None,
        show_welcome_message=False,
    )
    guarded = Guard(app, port=bound.getsockname()[1])
    config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[bound])


def add_routes(opened: OpenRun) -> None:
    """Add the page, and the pictures of the cached rows; nothing else of the disk is served."""

    def picture(token: str, row: int, side: int = 256) -> Response:
        review = opened.review
        if token != opened.token or not isinstance(review, Review):
            return Response(status_code=404)
        if not 0 <= row < len(review.predicted) or not 0 < side <= MAX_SIDE:
            return Response(status_code=404)
        shown = review.picture(row, side)
        if isinstance(shown, str):
            return Response(MISSING.format(shown), 404, media_type="image/svg+xml")
        return Response(shown, media_type="image/jpeg", headers={"Cache-Control": "max-age=300"})

    nicegui_app.add_api_route("/picture/{token}/{row}", picture)
    ui.page("/")(lambda: Window(opened))


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
            await self.app(scope, receive, self._protected(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        """Return the status and the reason to refuse a request, or None."""
        if headers.get("host") not in self._hosts:
            return 403, f"open http://{self._hosts[0]}"
        if headers.get("origin", f"http://{headers['host']}") != f"http://{headers['host']}":
            return 403, "requests of other sites are refused"
        if "transfer-encoding" in headers:
            return 411, "a request needs its length"
        if int(headers.get("content-length", "0")) > MAX_BODY:
            return 413, f"larger than {MAX_BODY:,} bytes"
        return None

    def _protected(self, send: Send) -> Send:
        """Return a ``send`` that adds the headers, and the nonce to the scripts of a page."""
        nonce = secrets.token_urlsafe(16)
        held: Message | None = None  # the start of a page, whose length is not known yet
        body = b""

        async def protected(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS | {"Content-Security-Policy": POLICY.format(nonce=nonce)})
                if headers.get("content-type", "").startswith("text/html"):
                    held = message
                    return
            elif held is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                # Names of files and classes are escaped in a page: these are its own scripts.
                body = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())
                MutableHeaders(scope=held)["content-length"] = str(len(body))
                start, held = held, None
                await send(start)
                message = {"type": "http.response.body", "body": body}
            await send(message)

        return protected
