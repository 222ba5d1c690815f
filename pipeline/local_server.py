"""Serve a web page on this machine only: 127.0.0.1, under this host name, to this origin."""

import errno
import secrets
import socket

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import BusyError

HOST = "127.0.0.1"
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


def serve(app: ASGIApp, bound: socket.socket, *, max_body: int) -> None:
    """Serve an app until Ctrl-C, which raises KeyboardInterrupt; requests of ``max_body`` bytes."""
    guarded = Guard(app, port=bound.getsockname()[1], max_body=max_body)
    config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[bound])


class Guard:
    """Refuse requests of other hosts and origins, and large ones; add a content security policy.

    A site in the same browser can send requests here under its own name (DNS rebinding) and open
    websockets: the headers Host and Origin say so.
    """

    def __init__(self, app: ASGIApp, *, port: int, max_body: int) -> None:
        self.app = app
        self._hosts = (f"{HOST}:{port}", f"localhost:{port}")
        self._max_body = max_body

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
        if int(headers.get("content-length", "0")) > self._max_body:
            return 413, f"larger than {self._max_body:,} bytes"
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
