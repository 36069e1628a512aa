"""The gateway as a server: its socket, its connections, its start and its end.

Hypercorn speaks HTTP on each connection; this module accepts the connections and hands hypercorn a stream with a bound: whoever
does not take what was written within a time limit is cut, since hypercorn shields its writes from cancelling and would wait
forever. At the end no connection is accepted any more, idle ones are closed, answers under way have a period of grace, and the
rest is cut.

Source: hypercorn 0.18, `hypercorn/trio/run.py` (`worker_serve`), whose place this takes because that owns the sockets it
listens on.
Spec: docs/gateway.md, section "Limits".
"""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp

from mesh.gateway.app import Pages, build_app
from mesh.gateway.config import GatewayAddressError, GatewayConfig
from mesh.gateway.doorman import CONNECTION_KEY, Doorman
from mesh.gateway.ports import DispatcherPort
from mesh.gateway.strict import StrictServer
from mesh.telemetry import Telemetry

WRITE_BYTES = 64 * 1024
"""Bytes a client has `write_timeout_s` to take: one read of a usual client, and 2 KiB/s at the default limit."""

BACKLOG = 128
"""Connections the kernel queues while all places are taken; more are refused by it."""

_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing discards what was not sent, so that the kernel keeps nothing for a client that never reads."""


class Gateway:
    """Serves clients until it is stopped.

    `serve` runs once. `stop` begins the end: new requests are refused at once, and `serve` returns when the last answer is out
    or the period of grace is over. Cancelling `serve` cuts everything at once.
    """

    def __init__(self, config: GatewayConfig, dispatcher: DispatcherPort, telemetry: Telemetry) -> None:
        self._config = config
        self._telemetry = telemetry
        self._stopping = trio.Event()
        self._streams: dict[_Stream, None] = {}  # in the order in which they came
        self._all_closed = trio.Event()
        self._places = trio.Semaphore(config.connections_max)
        self._dispatcher = dispatcher

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._streams)

    def stop(self) -> None:
        """Begin the end."""
        self._stopping.set()

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve; reports the URL when ready.

        Raises:
            GatewayAddressError: the address is not allowed, not valid, or taken.
        """
        listening = listen(self._config)
        config, context, app = self._hypercorn_config(), WorkerContext(None), self._build_app()
        async with trio.open_nursery() as connections:
            accepting_socket = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            listener = _Listener(accepting_socket, self._places, self._make_room)
            connections.start_soon(self._cut_when_cancelled)
            async with trio.open_nursery() as accepting:
                handler = partial(self._serve_client, app, config, context)
                accepting.start_soon(partial(trio.serve_listeners, handler, [listener], handler_nursery=connections))
                task_status.started(url_of(listening, secure=self._config.tls is not None))
                await self._stopping.wait()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            with trio.move_on_after(self._config.grace_s):
                while self._streams:
                    self._all_closed = trio.Event()
                    await self._all_closed.wait()
            connections.cancel_scope.cancel()

    async def _cut_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            for stream in list(self._streams):
                stream.cut()

    def _build_app(self) -> ASGIApp:
        pages = Pages(self._config, self._dispatcher, self._telemetry, self._stopping.is_set)
        node = str(self._dispatcher.status().get("peer_id", "unknown"))
        refused = self._telemetry.request_refused
        return Doorman(build_app(pages, refused), self._config, node, refused)

    async def _serve_client(self, app: ASGIApp, config: Config, context: WorkerContext, accepted: trio.SocketStream) -> None:
        stream = _Stream(accepted, self._config.write_timeout_s, self._telemetry)
        self._streams[stream] = None
        self._telemetry.client_connected()
        state = ConnectionState({CONNECTION_KEY: stream})
        try:
            server = StrictServer(ASGIWrapper(app), config, context, state, self._secured(stream))
            server.refused = self._telemetry.request_refused
            await server.run()
        except* (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, ValueError):
            # Hypercorn met a connection that broke at a moment it does not expect; it costs this connection and no other.
            self._telemetry.gateway_failed("a connection broke inside the HTTP server")
        finally:
            stream.cut()
            del self._streams[stream]
            self._places.release()
            self._telemetry.client_disconnected()
            if not self._streams:
                self._all_closed.set()

    def _secured(self, stream: "_Stream") -> Any:
        """The stream that hypercorn speaks on: under TLS, where it is served, the same bounded one lies."""
        if self._config.tls is None:
            return stream
        return trio.SSLStream(stream, self._config.tls, server_side=True, https_compatible=True)

    def _make_room(self) -> None:
        """Cut the connection that waits the longest for a complete request, first among those that never made one.

        Connections with work under way are left alone.
        """
        waiting = [stream for stream in self._streams if not stream.works]
        if waiting:
            self._telemetry.client_cut()
            min(waiting, key=lambda stream: (stream.has_worked, stream.waits_since)).cut()

    def _hypercorn_config(self) -> Config:
        config = Config()
        config.accesslog = None
        config.errorlog = None
        config.logger_class = partial(_HypercornLog, self._telemetry)
        config.include_server_header = False
        config.h11_max_incomplete_size = self._config.header_bytes_max
        config.h2_max_header_list_size = self._config.header_bytes_max
        config.keep_alive_timeout = config.ssl_handshake_timeout = self._config.idle_timeout_s
        return config


def listen(config: GatewayConfig) -> socket.socket:
    """Open the listening socket.

    Raises:
        GatewayAddressError: the address is not allowed, not valid, or taken.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if config.host == "localhost" else config.host.strip("[]"))
    except ValueError:
        raise GatewayAddressError(f"gateway host {config.host!r} is no IP address; use 127.0.0.1, ::1 or localhost") from None
    if not address.is_loopback and not config.insecure_remote and (config.keys is None or config.tls is None):
        lacking = " and ".join(name for name, have in (("no key", config.keys), ("no TLS", config.tls)) if have is None)
        raise GatewayAddressError(
            f"gateway host {config.host!r} can be reached from other machines, and the gateway has {lacking}; "
            "use 127.0.0.1, or give it both, or set insecure_remote where the network in front of it decides who may call"
        )
    listening = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind((str(address), config.port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise GatewayAddressError(f"gateway cannot listen on {config.host} port {config.port}: {error}") from error
    return listening


def url_of(listening: socket.socket, *, secure: bool = False) -> str:
    """The URL of what listens here, as this machine reaches it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # nothing is bound here
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Listener(trio.abc.Listener[trio.SocketStream]):
    """Accepts clients, each of which has a place; the server gives the place back when the connection ends.

    Where no place is free the connection that has asked for nothing the longest makes room for the new one.
    """

    def __init__(self, inner: trio.SocketListener, places: trio.Semaphore, make_room: Callable[[], None]) -> None:
        self._inner = inner
        self._places = places
        self._make_room = make_room

    async def accept(self) -> trio.SocketStream:
        """Wait for a client, then for a place."""
        accepted = await self._inner.accept()
        try:
            if self._places.value == 0:
                self._make_room()
            await self._places.acquire()
        except BaseException:
            accepted.socket.close()
            raise
        return accepted

    async def aclose(self) -> None:
        """Stop listening."""
        await self._inner.aclose()


class _Stream(trio.abc.HalfCloseableStream):
    """A client's connection with a time limit on every write.

    Attributes:
        works: requests of it that are complete and not answered yet: 0 or 1.
        has_worked: whether a request of it was ever complete.
        waits_since: when it last began to wait for a complete request.
    """

    def __init__(self, inner: trio.SocketStream, write_timeout_s: float, telemetry: Telemetry) -> None:
        self._inner = inner
        self._write_timeout_s = write_timeout_s
        self._telemetry = telemetry
        self.works = 0
        self.has_worked = False
        self.waits_since = trio.current_time()

    def begin_work(self) -> None:
        """Note that a request is complete."""
        self.works += 1
        self.has_worked = True

    def end_work(self) -> None:
        """Note that it was answered."""
        self.works -= 1
        self.waits_since = trio.current_time()

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, which hypercorn asks for its addresses."""
        return self._inner.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, or cut the connection."""
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            with trio.move_on_after(self._write_timeout_s) as scope:
                await self._inner.send_all(view[start : start + WRITE_BYTES])
            if scope.cancelled_caught:
                self._telemetry.client_cut()
                self.cut()
                raise trio.BrokenResourceError("the client stopped reading")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what there is."""
        return await self._inner.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """Say that nothing follows."""
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """Close the connection; what was written is still delivered."""
        await self._inner.aclose()

    def cut(self) -> None:
        """Close the connection now and forget what was not delivered; whoever waits on it is woken with an error."""
        with contextlib.suppress(OSError):
            self._inner.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._inner.socket.close()


class _HypercornLog:
    """Takes hypercorn's log lines: its failures are ours to report, the rest is noise."""

    def __init__(self, telemetry: Telemetry, _config: Config) -> None:
        self._telemetry = telemetry

    async def access(self, _request: object, _response: object, _request_time: float) -> None:
        """An access line: `Telemetry.request_ended` has said more."""

    async def info(self, _message: str, *_args: object) -> None:
        """Where it listens: nothing, since we listen."""

    async def warning(self, _message: str, *_args: object) -> None:
        """Advice about an application's life cycle, which ours does not have."""

    async def exception(self, message: str, *_args: object) -> None:
        """An exception that a handler let out."""
        self._telemetry.gateway_failed(message)
