"""The fabrics of one node: with whom one is open, who may have one, and requests that use it.

A fabric with a peer is opened when the first request with large tensors goes to it, if both cards have the same host tag; that
takes a round trip, and where it does not work out the request goes as any other. What breaks closes the fabric for a while.
Ranking counts a fabric only while it is open.

Spec: docs/spec/11-fabric.md.
"""

import hashlib
import os
import socket
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import trio

from mesh.fabric.door import DOOR, Terms, bind_door, close_all, enter, let_in, send_packet
from mesh.fabric.lane import Lane
from mesh.fabric.ring import Inbox, Outbox, check_bell, make_bell
from mesh.fabric.session import ShmSession
from mesh.inference import Answer, Served, ServeLimits, request_over, serve_stream
from mesh.inference.server import Handle, Handled
from mesh.telemetry import Telemetry
from mesh.transport import ConnectionLost, Stream, StreamReset, Transport
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import (
    FABRIC_PROTOCOL,
    INFER_FABRIC_PROTOCOL,
    SHM,
    STREAM,
    Advert,
    FabricConfig,
    FabricPeers,
    Kind,
    crossover_bytes,
    decode_advert,
    encode_advert,
    host_tag,
    matches,
)
from protocol.fabric.messages import (
    NONCE_BYTES,
    SECRET_BYTES,
    Door,
    Hello,
    Shut,
    decode_hello,
    decode_opening,
    encode_hello,
    encode_opening,
)
from protocol.identity import PeerId, peer_id_text
from protocol.inference import InferenceRequest, Reply, TensorsReady
from protocol.node import Node

SESSIONS_MAX = 64
"""Peers with which a fabric is open at a time, a count: more nodes than one host has any use for."""

OPENINGS_MAX = 16
"""Fabrics that are being opened by others at a time, a count."""

OPEN_S_MAX = 0.2
"""How long a request waits for a fabric to be opened, in seconds (ISO-FAB-006)."""

LATES_MAX = 3
"""Transfers in a row that a peer does not take in time until its fabric is closed, a count: one may be a busy moment."""

MATCHED_MAX = 1024
"""Peers of which it is remembered for a while whether they share a fabric with this node, a count."""

MATCHED_S = 5.0
"""How long, in seconds: a card that changes is told every few seconds at the most."""

TICK_S = 1.0
"""How often leases are looked at that have run out, in seconds: they are measured in minutes."""

Closed = Callable[[ShmSession, str], None]
"""Hears once that a session is over, and why; nothing where nothing is wrong."""

OPENING_BYTES_MAX = 1024
"""Longest frame of an opening in bytes."""


def host_secret(root: Path = Path("/")) -> bytes:
    """What the processes of this host, start and network namespace share; empty where the system does not tell.

    Source: random(4), "boot_id"; network_namespaces(7).
    """
    try:
        boot_id = (root / "proc/sys/kernel/random/boot_id").read_bytes().strip()
        namespace = str((root / "proc/self/ns/net").readlink()).encode()
    except OSError:
        return b""
    return hashlib.sha256(b"isochrone-host-secret:" + boot_id + b":" + namespace).digest() if boot_id else b""


class Fabrics:
    """The fabrics of one node; `run` it in a nursery."""

    def __init__(
        self, node: Node, transport: Transport, telemetry: Telemetry, *, secret: bytes, config: FabricConfig | None = None
    ) -> None:
        """Tells which fabrics this node has on its card.

        Args:
            node: the core.
            transport: for the streams by which fabrics are opened.
            telemetry: hears of what breaks.
            secret: of the host; empty for no fabrics.
            config: bounds.
        """
        self.config = config or FabricConfig()
        self.threshold_bytes = crossover_bytes(SHM, STREAM)
        self.now = transport.now
        self._node, self._transport, self._telemetry = node, transport, telemetry
        self._peers = FabricPeers(self.config)
        self._advert = Advert(host_tag(secret, node.config.network_id)) if secret else Advert()
        self._sessions: dict[PeerId, ShmSession] = {}
        self._opening: dict[PeerId, trio.Event] = {}
        self._n_doors = 0
        self._matched: OrderedDict[PeerId, tuple[float, bool]] = OrderedDict()
        self._expected: deque[tuple[float, Lane, int]] = deque()
        self._has_expected = trio.Event()
        self._nursery: trio.Nursery | None = None
        node.announcer.handle_fabric(encode_advert(self._advert))
        if secret:
            transport.add_handler(FABRIC_PROTOCOL, self._serve_opening)

    def add_handler(self, serve: Callable[[Stream], Awaitable[None]]) -> None:
        """Have streams with a fabric served, where this node has any."""
        if self._advert.host:
            self._transport.add_handler(INFER_FABRIC_PROTOCOL, serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carries out what fabrics do beside requests, until cancelled; then every one is closed."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch_expected)
            self._nursery.start_soon(self._watch_leases)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                for session in list(self._sessions.values()):
                    session.close("")
                self._nursery.cancel_scope.cancel()

    @property
    def wants_large(self) -> bool:
        """Whether there is any peer to which tensors could go that no message holds."""
        peers = self._transport.connections if self._advert.host else ()
        return any(peer in self._sessions or self._may_share(peer) for peer in peers)

    # Asking

    def wants(self, peer: PeerId, request: InferenceRequest) -> bool:
        """Whether a request to a peer is worth a fabric, and there may be one."""
        if not request.tensors or not self._advert.host or self._nursery is None:
            return False
        if sum(tensor.data.nbytes for tensor in request.tensors) < self.threshold_bytes:
            return False
        return peer in self._sessions or (peer in self._transport.connections and self._may_share(peer))

    async def session(self, peer: PeerId) -> ShmSession | None:
        """The fabric with a peer, opened if there is none; None where that does not work out."""
        session = self._sessions.get(peer)
        if session is None and self._may_share(peer):
            with trio.move_on_after(OPEN_S_MAX):
                await self._open(peer)
            session = self._sessions.get(peer)
        return session

    async def way_to(self, peer: PeerId, request: InferenceRequest) -> tuple[Stream, ShmSession] | None:
        """A stream and the fabric for one request to a peer; None where it goes as any other."""
        if not self.wants(peer, request):
            return None
        session = await self.session(peer)
        connection = self._transport.connections.get(peer)
        if session is None or connection is None:
            return None
        try:
            return await connection.open_stream(INFER_FABRIC_PROTOCOL), session
        except (StreamReset, ConnectionLost):
            return None

    @asynccontextmanager
    async def request_over(
        self, stream: Stream, session: ShmSession, request: InferenceRequest, on_way: Callable[[str], None]
    ) -> AsyncIterator["FilledAnswer"]:
        """Send a request whose tensors take the fabric, and hand out its answer, as `mesh.inference.request_over` does.

        Args:
            stream: negotiated for requests with a fabric.
            session: the fabric.
            request: what to ask.
            on_way: told which way the tensors take.
        """
        lane = Lane(stream, session, self, request.deadline_s, serves=False)
        lane.on_way = on_way
        if lane.offer(request.tensors):
            request = replace(request, tensors=())
        async with request_over(lane, request) as answer:
            yield FilledAnswer(answer, lane)

    def _may_share(self, peer: PeerId) -> bool:
        """Whether a peer's card says that it shares this host, and nothing has closed the fabric with it."""
        now = self.now()
        if not self._peers.is_open(peer, now) or len(self._sessions) >= SESSIONS_MAX:
            return False
        checked_at, matched = self._matched.get(peer, (float("-inf"), False))
        if now - checked_at > MATCHED_S:
            card = self._node.peer(peer, now).card
            try:
                other = Advert() if card is None else decode_advert(card.fabric)
            except RemoteProtocolError:  # a wrong advert counts as none
                other = Advert()
            matched = any(match.kind is Kind.SHM for match in matches(self._advert, other))
            self._matched[peer] = (now, matched)
            self._matched.move_to_end(peer)
            if len(self._matched) > MATCHED_MAX:
                self._matched.popitem(last=False)
        return matched

    async def _open(self, peer: PeerId) -> None:
        """Opens a fabric with a peer; whoever asks meanwhile waits for the same."""
        opening = self._opening.get(peer)
        if opening is not None:
            await opening.wait()
            return
        self._opening[peer] = trio.Event()
        try:
            await self._knock(peer)
        except (RemoteProtocolError, StreamReset, ConnectionLost, OSError) as error:
            self._failed(peer, f"it could not be opened: {error}")
        except trio.Cancelled:
            if peer not in self._sessions:
                self._failed(peer, f"it was not open within {OPEN_S_MAX:g} s")
            raise
        finally:
            self._opening.pop(peer).set()

    async def _knock(self, peer: PeerId) -> None:
        connection = self._transport.connections.get(peer)
        if connection is None:
            return
        own_nonce = self._transport.machine.entropy(NONCE_BYTES)
        async with await connection.open_stream(FABRIC_PROTOCOL) as stream:
            await stream.send_all(encode_frame(encode_hello(Hello((int(Kind.SHM),), own_nonce))))
            answer = decode_opening(await _one_frame(stream))
            if isinstance(answer, Shut):
                raise RemoteProtocolError(answer.code, answer.detail)
            if answer.kind is not Kind.SHM:
                raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"a door of {answer.kind.name}")
            terms = Terms(answer.secret, self._node.peer_id, peer, own_nonce, answer.nonce)
            with _Making() as making:
                local, passed = await enter(answer.place, terms, making.passed)
                self._begin(making.session(peer, self.config, local, passed, self._closed))

    # Being asked

    async def serve(self, stream: Stream, handle: Handle, limits: ServeLimits | None = None) -> Served:
        """Answers one request whose tensors may take the fabric, as `mesh.inference.serve_stream` does."""
        lane = Lane(stream, self._sessions.get(stream.peer_id), self, 0.0, serves=True)

        def handle_filled(request: InferenceRequest, peer: PeerId) -> Handled:
            lane.lives(request.deadline_s)
            tensors = None if request.tensors else lane.next_tensors()
            handled = handle(request if tensors is None else replace(request, tensors=tensors), peer)
            if isinstance(handled, tuple):
                return tuple(self._given(lane, reply) for reply in handled)
            return self._given_later(lane, handled)

        served = await serve_stream(lane, handle_filled, limits)
        return served if lane.fault is None else replace(served, fault=lane.fault)

    def _given(self, lane: Lane, reply: Reply) -> Reply:
        """The reply as it goes out: large tensors take the fabric."""
        if isinstance(reply, TensorsReady):
            size = sum(tensor.data.nbytes for tensor in reply.tensors)
            if (size >= self.threshold_bytes or not reply.tensors) and lane.offer(reply.tensors):
                return TensorsReady(())
        return reply

    @asynccontextmanager
    async def _given_later(
        self, lane: Lane, handled: AbstractAsyncContextManager[AsyncIterator[Reply]]
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        async with handled as replies:
            yield _Given(replies, lambda reply: self._given(lane, reply))

    async def _serve_opening(self, stream: Stream) -> None:
        """Lets a peer in who asks for a fabric."""
        peer = stream.peer_id
        try:
            async with stream:
                hello = decode_hello(await _one_frame(stream))
                shut = self._shut_for(peer, hello)
                if shut is not None:
                    await stream.send_all(encode_frame(encode_opening(shut)), end=True)
                    return
                self._n_doors += 1
                try:
                    await self._open_door(stream, hello)
                finally:
                    self._n_doors -= 1
        except RemoteProtocolError as error:
            self._failed(peer, error.detail)
        except (StreamReset, ConnectionLost, OSError) as error:
            self._failed(peer, str(error))

    def _shut_for(self, peer: PeerId, hello: Hello) -> Shut | None:
        """Why there is no fabric for a peer now; None where there is."""
        refused = self._peers.charge_offer(peer, self.now())
        if refused is not None:
            return Shut(refused, self._peers.why_closed(peer, self.now()) or "too many offers")
        if Kind.SHM not in hello.kinds:
            return Shut(ErrorCode.UNSUPPORTED, "this node has shared memory alone")
        if len(self._sessions) >= SESSIONS_MAX or self._n_doors >= OPENINGS_MAX or self._nursery is None:
            return Shut(ErrorCode.OVERLOADED, "this node has fabrics with as many as it can")
        return None

    async def _open_door(self, stream: Stream, hello: Hello) -> None:
        entropy = self._transport.machine.entropy
        name, secret, nonce = b"isochrone-" + entropy(16).hex().encode(), entropy(SECRET_BYTES), entropy(NONCE_BYTES)
        listener = bind_door(name)
        try:
            await stream.send_all(encode_frame(encode_opening(Door(Kind.SHM, name, secret, nonce))), end=True)
        except BaseException:
            listener.close()
            raise
        terms = Terms(secret, stream.peer_id, self._node.peer_id, hello.nonce, nonce)
        with _Making() as making:
            local, passed = await let_in(listener, terms)
            session = making.session(stream.peer_id, self.config, local, passed, self._closed)
            send_packet(local, terms.proof(DOOR), making.passed)
            self._begin(session)

    # Sessions

    def _begin(self, session: ShmSession) -> None:
        """A fabric is open; it takes the place of an earlier one with the same peer."""
        earlier = self._sessions.get(session.peer)
        if earlier is not None:
            earlier.close("")
        assert self._nursery is not None
        self._sessions[session.peer] = session
        self._node.ways[session.peer] = SHM
        self._nursery.start_soon(session.run)
        self._telemetry.log.info("fabric opened", peer=peer_id_text(session.peer), kind="shm")

    def _closed(self, session: ShmSession, why: str) -> None:
        if self._sessions.get(session.peer) is session:
            del self._sessions[session.peer]
            self._node.ways.pop(session.peer, None)
            if why:
                self._failed(session.peer, why)
            else:
                self._telemetry.log.info("fabric closed", peer=peer_id_text(session.peer))

    def fault(self, session: ShmSession, why: str) -> None:
        """Something about a fabric went wrong: it is closed, and stays so for a while."""
        session.close(why)

    def _failed(self, peer: PeerId, why: str) -> None:
        closed_s = self._peers.handle_error(peer, why, self.now())
        self._telemetry.log.warning("fabric closed for a while", peer=peer_id_text(peer), reason=why, closed_s=closed_s)

    def succeeded(self, session: ShmSession) -> None:
        """A transfer to a peer went well."""
        session.n_late = 0
        self._peers.handle_success(session.peer)

    def was_late(self, session: ShmSession, why: str) -> None:
        """A peer has not taken a transfer in time. It may be busy; a fabric that is late time after time carries nothing."""
        session.n_late += 1
        self._telemetry.log.info("transfer late", peer=peer_id_text(session.peer), in_a_row=session.n_late)
        if session.n_late >= LATES_MAX:
            self.fault(session, why)

    def charge_offer(self, peer: PeerId) -> ErrorCode | None:
        """Charge a peer for a transfer that it offers; what it is refused with, None where it is not."""
        return self._peers.charge_offer(peer, self.now())

    # What lanes need

    def spawn(self, work: Callable[..., Awaitable[object]], *args: object) -> None:
        """Do something beside the request."""
        assert self._nursery is not None
        self._nursery.start_soon(work, *args)

    def expect(self, lane: Lane, number: int) -> None:
        """Tell a lane when the time is over in which a transfer is to be taken."""
        self._expected.append((trio.current_time() + self.config.take_s, lane, number))
        self._has_expected.set()

    async def _watch_expected(self) -> None:
        """All wait equally long, so the first that began is the first that is late."""
        while True:
            if not self._expected:
                self._has_expected = trio.Event()
                await self._has_expected.wait()
            due, lane, number = self._expected[0]
            await trio.sleep_until(due)
            self._expected.popleft()
            with suppress(RemoteProtocolError):
                lane.late(number)

    async def _watch_leases(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            for session in list(self._sessions.values()):
                session.handle_timer(self.now())

    def status(self) -> dict[str, object]:
        """The fabrics that are there, for people."""
        return {
            "kinds": ["shm"] if self._advert.host else [],
            "from_bytes": round(self.threshold_bytes) if self._advert.host else None,
            "open": {peer_id_text(peer): {"kind": "shm", **session.figures()} for peer, session in self._sessions.items()},
        }


class FilledAnswer:
    """The answer of a peer, with the tensors that took the fabric where they belong."""

    __slots__ = ("_answer", "_lane")

    def __init__(self, answer: Answer, lane: Lane) -> None:
        self._answer = answer
        self._lane = lane

    @property
    def fault(self) -> RemoteProtocolError | None:
        """How the peer broke the protocol; None while it did not."""
        return self._answer.fault

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        reply = await self._answer.__anext__()
        if isinstance(reply, TensorsReady) and not reply.tensors:
            tensors = self._lane.next_tensors()
            return reply if tensors is None else TensorsReady(tensors)
        return reply


class _Given:
    """Replies, each as it goes out."""

    __slots__ = ("_given", "_replies")

    def __init__(self, replies: AsyncIterator[Reply], given: Callable[[Reply], Reply]) -> None:
        self._replies = replies
        self._given = given

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        return self._given(await self._replies.__anext__())


class _Making:
    """What one side brings to a session; closed where none comes of it."""

    def __init__(self) -> None:
        self._bell = make_bell()
        try:
            self._outbox: Outbox | None = Outbox(-1)
        except BaseException:
            os.close(self._bell)
            raise
        self._taken = False

    @property
    def passed(self) -> list[int]:
        """The ring and the bell, to be passed to the other side."""
        assert self._outbox is not None
        return [self._outbox.region.descriptor, self._bell]

    def session(self, peer: PeerId, config: FabricConfig, local: socket.socket, passed: list[int], closed: Closed) -> ShmSession:
        """The session, with what the other side has passed.

        Raises:
            RemoteProtocolError: that is no ring and no bell.
        """
        assert self._outbox is not None
        ring, bell = passed
        try:
            inbox = Inbox(ring)
            check_bell(bell)
        except BaseException:
            close_all([bell])
            local.close()
            raise
        finally:
            close_all([ring])
        self._outbox.other_bell = bell
        self._taken = True
        return ShmSession(peer, config, local, self._outbox, inbox, self._bell, closed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if not self._taken:
            os.close(self._bell)
            assert self._outbox is not None
            self._outbox.region.close()


async def _one_frame(stream: Stream) -> bytes:
    """The one frame that a peer says here.

    Raises:
        RemoteProtocolError: the stream ends before it.
    """
    decoder = FrameDecoder(OPENING_BYTES_MAX)
    with stream.waiting():
        while (frame := decoder.next_frame()) is None:
            data = await stream.receive_some()
            if not data:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before its frame")
            decoder.receive(data)
    return frame
