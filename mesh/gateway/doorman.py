"""The outermost ASGI layer: who may come in, and how much they may carry.

It lets through HTTP/1 requests whose `Host` is one of ours (a page in a browser that was led here by DNS rebinding has another),
whose `Origin` is absent or ours, and that carry a key where the gateway has keys. It reads the whole body before anything else
runs, within limits of size, of time and of all bodies together, since the server beneath cannot finish an answer while unread
body is queued. What it refuses it still reads for a while, so that a client that writes first and reads later gets to see the
refusal. It gives each request its id, and every answer the headers that say where it comes from.

Source: CVE-2025-66414 and CVE-2026-11624 (DNS rebinding against loopback servers); RFC 9110, section 15.5.20 (421); RFC 9112,
section 6.1 (a length given twice); RFC 6750, sections 2.3 and 3 (keys in addresses, and the challenge).
Spec: docs/gateway.md, sections "Who may call" and "Limits".
"""

import secrets
from collections.abc import Callable
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import trio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.gateway.config import GatewayConfig
from mesh.gateway.failures import ApiError
from protocol.budget import Budget, Verdict
from protocol.inference import REQUEST_ID_BYTES

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine that no resolver can point elsewhere."""

REQUEST_ID_KEY = "isochrone_request_id"
"""Under this name the id stands in the scope's state, as bytes."""

CONNECTION_KEY = "isochrone_connection"
"""Under this name the connection stands in the scope's state; see `Connection`."""

METHODS = frozenset({"GET", "HEAD", "POST"})
"""What any page answers; OPTIONS asks for CORS, of which there is none, TRACE echoes headers, CONNECT is a proxy's."""

HEADERS_MAX = 100
"""Most headers of a request, a count: OpenAI's clients send about 20, browsers 30."""

KEY_PARAMETERS = frozenset({"accesstoken", "apikey", "auth", "authorization", "key", "password", "secret", "token", "xapikey"})
"""Names, in small letters and digits alone, under which keys are put into addresses, and so into logs and histories."""

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
"""On every answer: should a browser come to show one, nothing in it runs, loads, or is told on."""

HTTP_VERSIONS = ("1.0", "1.1")
"""What is served. HTTP/2 without TLS would bring its own floods and buffers, and no client asks for it."""


class ClientGoneError(Exception):
    """The client went away before its request was complete."""


class Connection(Protocol):
    """The client's connection, which makes room for others only while no request on it is being answered."""

    def begin_work(self) -> None:
        """A request is complete."""

    def end_work(self) -> None:
        """It was answered."""


class Doorman:
    """Checks requests and collects their bodies before `app` sees them."""

    def __init__(self, app: ASGIApp, config: GatewayConfig, node: str, refused: Callable[[str], None]) -> None:
        self._app = app
        self._node = node
        self._config = config
        self._refused = refused
        self._names = LOOPBACK_NAMES | {name.lower() for name in config.allowed_hosts} | {config.host.lower()}
        self._held_bytes = 0
        self._budgets: dict[str, Budget] = {}  # by the name of a key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI asks."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        request_id = secrets.token_bytes(REQUEST_ID_BYTES)
        scope["state"][REQUEST_ID_KEY] = request_id

        async def _send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = request_id.hex()
                headers.update(SAFE_HEADERS)
                headers.setdefault("cache-control", "no-store")
                headers.setdefault("x-mesh-node", self._node)
            await send(message)

        body = _Body(receive, self._config, self._reserve)
        try:
            self._check(scope)
            content = await body.read()
        except ClientGoneError:
            return
        except ApiError as error:
            self._refused(error.code)
            await self._refuse(error, body, scope, _send_marked)
            return
        else:
            connection: Connection = scope["state"][CONNECTION_KEY]
            connection.begin_work()
            try:
                await self._app(scope, _replay(content, receive), _send_marked)
            finally:
                connection.end_work()
        finally:
            self._held_bytes -= body.held_bytes

    def _check(self, scope: Scope) -> None:
        if scope["http_version"] not in HTTP_VERSIONS:
            raise ApiError(505, "http_version", "This gateway speaks HTTP/1.1.", retry=False, close=True)
        headers = Headers(scope=scope)
        self._check_form(scope, headers)
        self._check_place(headers)
        if scope["method"] not in METHODS:
            raise ApiError(405, "method_not_allowed", "Method Not Allowed.", retry=False)
        _check_query(scope)
        self._check_key(headers)

    def _check_form(self, scope: Scope, headers: Headers) -> None:
        """Refuse what is too large, and what others could read as another request.

        Raises:
            ApiError: with the reason.
        """
        # The server stops reading headers at the limit, but not when they arrive in one piece.
        head_bytes = (
            len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers.raw)
        )
        if head_bytes > self._config.header_bytes_max:
            message = f"The headers are larger than {self._config.header_bytes_max} bytes."
            raise ApiError(431, "headers_too_large", message, retry=False)
        if len(headers.raw) > HEADERS_MAX:
            raise ApiError(431, "headers_too_large", f"There are more than {HEADERS_MAX} headers.", retry=False)
        if not scope["raw_path"].startswith(b"/"):
            raise ApiError(400, "bad_target", "This gateway is no proxy: ask for a path, not for an address.", retry=False)
        if "transfer-encoding" in headers and "content-length" in headers:
            message = "The body's length is given twice, by Content-Length and by Transfer-Encoding."
            raise ApiError(400, "ambiguous_length", message, retry=False, close=True)
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise ApiError(415, "unsupported_media_type", "Send the body as it is, not compressed.", retry=False)
        if "upgrade" in headers:
            raise ApiError(400, "upgrade_refused", "This gateway speaks HTTP/1.1 and nothing else.", retry=False, close=True)
        if headers.get("expect", "100-continue").strip().lower() != "100-continue":
            raise ApiError(417, "expectation_failed", "This gateway knows no expectation but 100-continue.", retry=False)

    def _check_place(self, headers: Headers) -> None:
        """Refuse requests that were led here: by a name that points here, or by a page of another place.

        Raises:
            ApiError: status 421 or 403.
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _host_name(f"//{hosts[0]}") not in self._names:
            message = "The Host header names another place than this gateway; call it by 127.0.0.1, localhost or [::1]."
            raise ApiError(421, "wrong_host", message, retry=False)
        for origin in headers.getlist("origin"):
            if _host_name(origin, ("http", "https")) not in self._names:
                raise ApiError(403, "wrong_origin", "Pages of other origins may not call this gateway.", retry=False)

    def _check_key(self, headers: Headers) -> None:
        """Refuse who has no key, without a word on what was wrong with it, and who asks too often with one.

        Raises:
            ApiError: status 401 or 429.
        """
        if self._config.keys is None:
            return
        told = headers.getlist("authorization")
        scheme, _, key = (told[0] if len(told) == 1 else "").partition(" ")
        owner = self._config.keys.owner_of(key.strip().encode("latin-1", "replace"))  # whatever comes costs one hash
        if owner is None or scheme.lower() != "bearer":
            raise ApiError(401, "invalid_api_key", "This gateway wants a key: Authorization: Bearer KEY.", retry=False)
        now = trio.current_time()
        if owner not in self._budgets:
            rate_per_s, burst = self._config.key_requests_per_s, self._config.key_requests_burst
            self._budgets[owner] = Budget(rate_per_s, burst, 0.0, now)
        if self._budgets[owner].take(1, now) is not Verdict.GRANTED:
            raise ApiError(429, "rate_limited", "Too many requests with this key.", retry_after_s=1.0)

    def _reserve(self, count: int) -> None:
        if self._held_bytes + count > self._config.bodies_bytes_max:
            raise ApiError(429, "overloaded", "Too many large requests at one time.", retry_after_s=1.0)
        self._held_bytes += count

    async def _refuse(self, error: ApiError, body: "_Body", scope: Scope, send: Send) -> None:
        """Answer with `error` after throwing away what the client is still sending."""
        if not await body.discard():
            error.close = True
        async with trio.open_nursery() as nursery:
            # The server queues what still arrives, and waits for somebody to take it, until the connection is closed.
            nursery.start_soon(body.discard_rest)
            await error.response()(scope, body.receive, send)
            nursery.cancel_scope.cancel()


class _Body:
    """Reads one request body within the limits."""

    def __init__(self, receive: Receive, config: GatewayConfig, reserve: Callable[[int], None]) -> None:
        self.receive = receive
        self.held_bytes = 0
        self._config = config
        self._reserve = reserve
        self._complete = False
        self._started_at = trio.current_time()

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            ApiError: it is too large (413), too slow (408), or there are too many others (429).
            ClientGoneError: the client went away.
        """
        parts: list[bytes] = []
        with trio.move_on_at(self._started_at + self._config.body_timeout_s):
            while not self._complete:
                part = await self._next()
                if self.held_bytes + len(part) > self._config.body_bytes_max:
                    message = f"The body is larger than {self._config.body_bytes_max} bytes."
                    raise ApiError(413, "too_large", message, retry=False)
                self._reserve(len(part))
                self.held_bytes += len(part)
                parts.append(part)
            return b"".join(parts)
        raise ApiError(408, "body_too_slow", f"The body did not arrive within {self._config.body_timeout_s:g} s.", close=True)

    async def discard(self) -> bool:
        """Throw the rest away, within limits; returns whether the end was reached."""
        left_bytes = self._config.drain_bytes_max
        with trio.move_on_at(self._started_at + self._config.body_timeout_s):
            while not self._complete and left_bytes > 0:
                try:
                    left_bytes -= len(await self._next())
                except ClientGoneError:
                    return False
        return self._complete

    async def discard_rest(self) -> None:
        """Throw away whatever comes until the connection is gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._complete = not message.get("more_body", False)
        part = message.get("body", b"")
        assert isinstance(part, bytes)
        return part


def _replay(content: bytes, receive: Receive) -> Receive:
    """Hand the collected body on as one message, then whatever the server says."""
    first: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def _pass_on() -> Message:
        return first.pop() if first else await receive()

    return _pass_on


def _check_query(scope: Scope) -> None:
    """Refuse a key in the address, where it ends in logs and histories, whether or not it is one.

    Raises:
        ApiError: status 400.
    """
    for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if "".join(filter(str.isalnum, name)).lower() in KEY_PARAMETERS:
            message = "A key in the address ends in logs: send it as Authorization: Bearer KEY, and make a new one."
            raise ApiError(400, "key_in_query", message, retry=False)


def _host_name(url: str, schemes: tuple[str, ...] = ("",)) -> str | None:
    """The host in `url`, or None when it is malformed or has anything but a host and a port."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    extra = parts.path or parts.query or parts.fragment or parts.username is not None or parts.password is not None
    if extra or parts.scheme not in schemes or port == 0 or parts.netloc != parts.netloc.strip():
        return None
    return parts.hostname
