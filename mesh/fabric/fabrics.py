"""The fabrics of one node: with whom one is open, who may have one, and requests that use it.

A fabric with a peer is opened when the first request with large tensors goes to it, if both cards say that there may be one;
that takes a round trip or two, and where it does not work out with one kind the next is tried, and with none the request goes as
any other. What breaks closes the fabric for a while. Ranking counts a fabric only while it is open.

Spec: docs/spec/11-fabric.md.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import trio

from mesh.fabric.answers import FilledAnswer, given_later, given_reply
from mesh.fabric.base import Opener, Opening, Ordering, Session
from mesh.fabric.control import Control
from mesh.fabric.gpu import all_ready
from mesh.fabric.kinds import Kinds
from mesh.fabric.lane import Lane
from mesh.inference import Answer, AnswerLimits, Served, ServeLimits, request_over, serve_stream
from mesh.inference.server import Handle, Handled
from mesh.telemetry import Telemetry
from mesh.transport import ConnectionLost, Stream, StreamReset, Transport
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import (
    FABRIC_PROTOCOL,
    INFER_FABRIC_PROTOCOL,
    STREAM,
    WORTH_BYTES_MIN,
    Advert,
    FabricConfig,
    FabricPeers,
    Kind,
    Match,
    Way,
    crossover_bytes,
    decode_advert,
    encode_advert,
    join_adverts,
    matches,
    reaches_devices,
)
from protocol.fabric.messages import (
    NONCE_BYTES,
    Hello,
    Shut,
    decode_hello,
    decode_opening,
    encode_hello,
    encode_opening,
)
from protocol.identity import PeerId, peer_id_text
from protocol.inference import InferenceRequest, Tensor, are_on_host
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


class Fabrics:
    """The fabrics of one node; `run` it in a nursery."""

    def __init__(
        self, node: Node, transport: Transport, telemetry: Telemetry, kinds: Kinds, config: FabricConfig | None = None
    ) -> None:
        """Tells which fabrics this node has on its card.

        Args:
            node: the core.
            transport: for the streams by which fabrics are opened.
            telemetry: hears of what breaks.
            kinds: what there is.
            config: bounds.
        """
        self.config = config or FabricConfig()
        self.now = transport.now
        self._node, self._transport, self._telemetry = node, transport, telemetry
        self._peers = FabricPeers(self.config)
        self._kinds = FabricPeers(self.config)  # the same of each kind with each peer, by `_key`: where it cannot be opened
        self._openers: dict[Kind, Opener] = {opener.kind: opener for opener in kinds.openers}
        self._absent = kinds.absent
        self._advert = Advert()
        self._sessions: dict[PeerId, Session] = {}
        self._device_sessions: dict[PeerId, Session] = {}  # those that carry tensors on a device, beside the others
        self._n_late: dict[PeerId, int] = {}
        self._begun: dict[PeerId, Match] = {}  # by which each session was opened, by its kind
        self._opening: dict[tuple[PeerId, bool], trio.Event] = {}
        self._n_doors = 0
        self._matched: OrderedDict[PeerId, tuple[float, tuple[Match, ...]]] = OrderedDict()
        self._expected: deque[tuple[float, Lane, int]] = deque()
        self._has_expected = trio.Event()
        self._n_fallbacks, self._fallback_s_max = 0, 0.0
        self._nursery: trio.Nursery | None = None
        self.is_trusted: Callable[[PeerId], bool] = lambda _peer: True
        """Whether a peer may have a fabric whose bytes anybody on the network between can read."""
        self.takes_device = False
        """Whether what is asked of this node may be put on a device: whether an engine takes it there."""
        self._tell()
        if self._openers:
            transport.add_handler(FABRIC_PROTOCOL, self._serve_opening)

    def _tell(self) -> None:
        """Tells on the card which kinds are there now."""
        self._advert = join_adverts([opener.advert() for opener in self._openers.values() if not opener.absent])
        self._matched.clear()
        self._node.handle_fabric(encode_advert(self._advert))

    def add_handler(self, serve: Callable[[Stream], Awaitable[None]]) -> None:
        """Have streams with a fabric served, where this node may have any."""
        if self._openers:
            self._transport.add_handler(INFER_FABRIC_PROTOCOL, serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carries out what fabrics do beside requests, until cancelled; then every one is closed."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch_expected)
            self._nursery.start_soon(self._watch_leases)
            for opener in self._openers.values():
                self._nursery.start_soon(opener.run, self._tell)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                for session in self._all_sessions():
                    session.close("")
                self._nursery.cancel_scope.cancel()

    def wants_large(self, request: InferenceRequest) -> bool:
        """Whether there is any peer to which tensors could go that no message holds, or that lie on a device as these do."""
        ways = {False, not are_on_host(request.tensors)}
        return any(
            peer in self._held(on_device=way) or self._shared(peer, on_device=way)
            for peer in self._transport.connections
            for way in ways
        )

    # Asking

    def wants(self, peer: PeerId, request: InferenceRequest) -> bool:
        """Whether a request to a peer is worth a fabric, and there may be one."""
        if not request.tensors or not self._openers or self._nursery is None:
            return False
        size = sum([tensor.size_bytes for tensor in request.tensors])
        if size < WORTH_BYTES_MIN:
            return False
        ways = (False,) if are_on_host(request.tensors) else (True, False)
        return any(self._is_worth(peer, size, on_device=way) for way in ways)

    def _is_worth(self, peer: PeerId, size: int, *, on_device: bool) -> bool:
        """The same for so many bytes and fabrics that reach devices, or for the others."""
        session = self._held(on_device=on_device).get(peer)
        if session is not None:
            return size >= crossover_bytes(session.way, STREAM)
        if peer not in self._transport.connections:
            return False
        shared = self._shared(peer, on_device=on_device)
        return any(size >= crossover_bytes(self._openers[match.kind].way(match), STREAM) for match in shared)

    async def session(self, peer: PeerId, *, on_device: bool = False, tensors: Sequence[Tensor] = ()) -> Session | None:
        """The fabric with a peer, opened if there is none; None where that does not work out.

        Args:
            peer: with whom.
            on_device: whether it is one for tensors that lie on a device alone.
            tensors: what is to be given first: of several ways of a kind the one is opened that suits them.
        """
        held = self._held(on_device=on_device)
        if peer not in held and self._shared(peer, on_device=on_device):
            with trio.move_on_after(OPEN_S_MAX):
                await self._open(peer, tensors, on_device=on_device)
        return held.get(peer)

    async def way_to(self, peer: PeerId, request: InferenceRequest) -> tuple[Stream, tuple[Session, ...]] | None:
        """A stream and the fabrics for one request to a peer; None where it goes as any other."""
        if not self.wants(peer, request):
            return None
        session, size = None, sum(tensor.size_bytes for tensor in request.tensors)
        if not are_on_host(request.tensors) and self._is_worth(peer, size, on_device=True):
            session = await self.session(peer, on_device=True, tensors=request.tensors)
        if session is None and self._is_worth(peer, size, on_device=False):
            session = await self.session(peer, tensors=request.tensors)
        connection = self._transport.connections.get(peer)
        if session is None or connection is None:
            return None
        try:
            return await connection.open_stream(INFER_FABRIC_PROTOCOL), self._with(peer)
        except (StreamReset, ConnectionLost):
            return None

    @asynccontextmanager
    async def request_over(
        self, stream: Stream, sessions: Sequence[Session], request: InferenceRequest, on_way: Callable[[str], None]
    ) -> AsyncIterator[FilledAnswer]:
        """Send a request whose tensors take a fabric, and hand out its answer, as `mesh.inference.request_over` does.

        Args:
            stream: negotiated for requests with a fabric.
            sessions: the fabrics.
            request: what to ask.
            on_way: told which way the tensors take.
        """
        lane, request = await self._offered(stream, sessions, request, on_way)
        async with request_over(lane, request) as answer:
            yield FilledAnswer(answer, lane)

    async def answer_over(
        self,
        stream: Stream,
        sessions: Sequence[Session],
        request: InferenceRequest,
        limits: AnswerLimits,
        on_way: Callable[[str], None],
    ) -> tuple[FilledAnswer, InferenceRequest]:
        """The answer to a request whose tensors take a fabric, and what is to be sent; arguments as of `request_over`."""
        lane, request = await self._offered(stream, sessions, request, on_way)
        return FilledAnswer(Answer(lane, request, limits), lane), request

    async def _offered(
        self, stream: Stream, sessions: Sequence[Session], request: InferenceRequest, on_way: Callable[[str], None]
    ) -> tuple[Lane, InferenceRequest]:
        """A stream that offers the tensors of a request, and the request as it goes with that."""
        await all_ready(request.tensors)
        lane = Lane(stream, sessions, self, request.deadline_s, serves=False)
        lane.takes_device = request.takes_device
        lane.on_way = on_way
        left = lane.carry(request.tensors)
        if left and not are_on_host(request.tensors) and await self.session(stream.peer_id) is not None:
            lane.sessions = self._with(stream.peer_id)  # no room on the device
            left = lane.carry(left)
        return lane, replace(request, tensors=left)

    def _held(self, *, on_device: bool) -> dict[PeerId, Session]:
        return self._device_sessions if on_device else self._sessions

    def _all_sessions(self) -> list[Session]:
        return [*self._sessions.values(), *self._device_sessions.values()]

    def _with(self, peer: PeerId) -> tuple[Session, ...]:
        """The fabrics that are open with a peer: at most one that reaches devices, and one other."""
        return tuple(held[peer] for held in (self._device_sessions, self._sessions) if peer in held)

    def _shared(self, peer: PeerId, *, on_device: bool = False) -> tuple[Match, ...]:
        """The fabrics that this node and a peer have by their cards, the preferred first, where nothing has closed them."""
        now = self.now()
        if not self._peers.is_open(peer, now) or len(self._held(on_device=on_device)) >= SESSIONS_MAX:
            return ()
        checked_at, shared = self._matched.get(peer, (float("-inf"), ()))
        if now - checked_at > MATCHED_S:
            shared = self._find_shared(peer)
            self._matched[peer] = (now, shared)
            self._matched.move_to_end(peer)
            if len(self._matched) > MATCHED_MAX:
                self._matched.popitem(last=False)
        right = [match for match in shared if reaches_devices(match.kind) == on_device]
        return tuple(match for match in right if self._kinds.is_open(_way_key(peer, match), now))

    def _advert_of(self, peer: PeerId) -> Advert:
        card = self._node.peer(peer, self.now()).card
        try:
            return Advert() if card is None else decode_advert(card.fabric)
        except RemoteProtocolError:  # a wrong advert counts as none
            return Advert()

    def _find_shared(self, peer: PeerId) -> tuple[Match, ...]:
        found = matches(self._advert, self._advert_of(peer))
        if any(match.kind is Kind.RDMA for match in found) and not self.is_trusted(peer):
            found = tuple(match for match in found if match.kind is not Kind.RDMA)
        return found

    async def _open(self, peer: PeerId, tensors: Sequence[Tensor], *, on_device: bool) -> None:
        """Opens a fabric with a peer; whoever asks meanwhile waits for the same."""
        key = peer, on_device
        if key in self._opening:
            await self._opening[key].wait()
            return
        self._opening[key] = trio.Event()
        try:
            await self._knock_until_open(peer, tensors, on_device=on_device)
        except trio.Cancelled:
            if peer not in self._held(on_device=on_device):
                for match in self._shared(peer, on_device=on_device):
                    self._cannot_open(peer, match, f"it was not open within {OPEN_S_MAX:g} s")
            raise
        finally:
            self._opening.pop(key).set()

    async def _knock_until_open(self, peer: PeerId, tensors: Sequence[Tensor], *, on_device: bool) -> None:
        """Tries one way after the other, in the order in which they are preferred; of a pool there is one for each peer."""
        found = self._shared(peer, on_device=on_device)
        for opener in self._openers.values():
            if isinstance(opener, Ordering):
                found = opener.order(found, self._advert_of(peer), tensors)
        left = [m for n, m in enumerate(found) if m.kind is Kind.RDMA or m.kind not in {other.kind for other in found[:n]}]
        while left and peer not in self._held(on_device=on_device):
            tried = list(left)
            try:
                await self._knock(peer, left)
            except (RemoteProtocolError, StreamReset, ConnectionLost, OSError) as error:
                if len(left) == len(tried):  # it has not come to a door, and will not for others
                    left.clear()
                for match in tried:
                    if match not in left:
                        self._cannot_open(peer, match, f"it could not be opened: {error}")
            else:
                return

    async def _knock(self, peer: PeerId, left: list[Match]) -> None:
        """Asks for a fabric of one of the kinds that are left, and takes out the way that is tried."""
        connection = self._transport.connections.get(peer)
        if connection is None:
            return
        own_nonce = self._transport.machine.entropy(NONCE_BYTES)
        async with AsyncExitStack() as streams:
            control = Control(await streams.enter_async_context(await connection.open_stream(FABRIC_PROTOCOL)))
            pair = next(((match.own_port, match.their_port) for match in left if match.kind is Kind.RDMA), None)
            await control.send(encode_hello(Hello(tuple(dict.fromkeys(int(match.kind) for match in left)), own_nonce, pair)))
            answer = decode_opening(await control.expect())
            if isinstance(answer, Shut):
                if answer.code is ErrorCode.UNSUPPORTED:  # as when it has not heard yet of what this node has
                    self._matched[peer] = (self.now(), ())
                    return
                left.clear()
                raise RemoteProtocolError(answer.code, answer.detail)
            match = next((match for match in left if match.kind is answer.kind), None)
            if match is None:
                left.clear()
                raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"a door of {answer.kind.name}, which was not asked for")
            left.remove(match)
            opener = self._openers[match.kind]
            try:
                session = await opener.knock(self._opening_with(peer, match, control), answer, own_nonce)
            except BaseException:
                control.close(ErrorCode.NO_ERROR)  # the other side may have it open already, and has done nothing wrong
                raise
            self._begin(session, match)
            if opener.keeps_stream:
                streams.pop_all()

    def _opening_with(self, peer: PeerId, match: Match, control: Control) -> Opening:
        own, entropy = self._node.peer_id, self._transport.machine.entropy
        return Opening(own, peer, match, self.config, control, entropy, self._closed)

    # Being asked

    async def serve(self, stream: Stream, handle: Handle, limits: ServeLimits | None = None) -> Served:
        """Answers one request whose tensors may take the fabric, as `mesh.inference.serve_stream` does."""
        lane = Lane(stream, self._with(stream.peer_id), self, 0.0, serves=True)
        lane.takes_device = self.takes_device
        takes_device = any(session.takes_devices for session in lane.sessions)

        def handle_filled(request: InferenceRequest, peer: PeerId) -> Handled:
            lane.lives(request.deadline_s)
            tensors = None if request.tensors else lane.next_tensors()
            request = replace(request, takes_device=takes_device and not request.receipt)
            handled = handle(request if tensors is None else replace(request, tensors=tensors), peer)
            if isinstance(handled, tuple):
                return tuple(given_reply(lane, reply) for reply in handled)
            return given_later(lane, handled)

        served = await serve_stream(lane, handle_filled, limits)
        return served if lane.fault is None else replace(served, fault=lane.fault)

    async def _serve_opening(self, stream: Stream) -> None:
        """Lets a peer in who asks for a fabric."""
        peer, control, tried = stream.peer_id, Control(stream), None
        try:
            async with stream:
                hello = decode_hello(await control.expect())
                found = self._found_for(peer, hello)
                if isinstance(found, Shut):
                    await control.send(encode_opening(found), end=True)
                    return
                tried, opener = found, self._openers[found.kind]
                self._n_doors += 1
                try:
                    session = await opener.admit(self._opening_with(peer, found, control), hello)
                finally:
                    self._n_doors -= 1
                ended = self._begin(session, found)
                if opener.keeps_stream:
                    await ended.wait()
        except (RemoteProtocolError, StreamReset, ConnectionLost, OSError) as error:
            if tried is None:
                self._failed(peer, str(error))
            else:
                self._cannot_open(peer, tried, str(error))

    def _found_for(self, peer: PeerId, hello: Hello) -> Match | Shut:
        """The fabric that a peer may have of those that it asks for, or why there is none now."""
        refused = self._peers.charge_offer(peer, self.now())
        if refused is not None:
            return Shut(refused, self._peers.why_closed(peer, self.now()) or "too many offers")
        shared: dict[int, Match] = {}
        # Memory is proved by the opening, whether the peer's card has come already or not; which of several pools is meant,
        # the card alone can tell.
        pools = [Match(Kind.CXL, pool=pool) for pool in self._advert.pools] if len(self._advert.pools) == 1 else []
        found = self._find_shared(peer)
        named = [match for match in found if match.kind is Kind.RDMA and (match.their_port, match.own_port) == hello.ports]
        for match in (Match(Kind.SHM), *pools, *named, *found):
            shared.setdefault(int(match.kind), match)
        here = [kind for kind in hello.kinds if kind in shared and self._is_here(peer, shared[kind])]
        if not here:
            return Shut(ErrorCode.UNSUPPORTED, "this node shares no fabric of these kinds, or none that works")
        held = self._held(on_device=reaches_devices(Kind(here[0])))
        if len(held) >= SESSIONS_MAX or self._n_doors >= OPENINGS_MAX or self._nursery is None:
            return Shut(ErrorCode.OVERLOADED, "this node has fabrics with as many as it can")
        return shared[here[0]]

    def _is_here(self, peer: PeerId, match: Match) -> bool:
        """Whether this node has a kind of fabric, and could open it with a peer the last time; which ports, the peer decides."""
        opener = self._openers.get(match.kind)
        works = match.kind is Kind.RDMA or self._kinds.is_open(_way_key(peer, match), self.now())
        return opener is not None and not opener.absent and works

    # Sessions

    def _begin(self, session: Session, match: Match) -> trio.Event:
        """A fabric is open; it takes the place of an earlier one with the same peer. Returns what is set when it is over."""
        on_device = reaches_devices(session.kind)
        held = self._held(on_device=on_device)
        earlier = held.get(session.peer)
        if earlier is not None:
            earlier.close("")
        assert self._nursery is not None
        held[session.peer] = session
        self._n_late[_key(session.peer, session.kind)] = 0
        self._begun[_key(session.peer, session.kind)] = match
        self._ways(on_device=on_device)[session.peer] = session.way
        ended = trio.Event()
        self._nursery.start_soon(self._run_session, session, ended)
        self._telemetry.log.info("fabric opened", peer=peer_id_text(session.peer), kind=session.kind.name.lower())
        return ended

    def _ways(self, *, on_device: bool) -> dict[PeerId, Way]:
        """What the core is told of the fabrics that are open."""
        return self._node.device_ways if on_device else self._node.ways

    async def _run_session(self, session: Session, ended: trio.Event) -> None:
        try:
            await session.run()
        finally:
            session.close("")
            ended.set()

    def _closed(self, session: Session, why: str) -> None:
        if why:
            for _, lane, number in list(self._expected):
                lane.broken(session, number, why)
        on_device = reaches_devices(session.kind)
        held = self._held(on_device=on_device)
        if held.get(session.peer) is session:
            del held[session.peer], self._n_late[_key(session.peer, session.kind)]
            match = self._begun.pop(_key(session.peer, session.kind))
            self._ways(on_device=on_device).pop(session.peer, None)
            if not why:
                self._telemetry.log.info("fabric closed", peer=peer_id_text(session.peer))
            elif on_device:  # the others may be used nevertheless
                self._cannot_open(session.peer, match, why)
            else:
                self._failed(session.peer, why)

    def fault(self, session: Session, why: str) -> None:
        """Something about a fabric went wrong: it is closed, and stays so for a while."""
        session.close(why)

    def _failed(self, peer: PeerId, why: str) -> None:
        closed_s = self._peers.handle_error(peer, why, self.now())
        self._telemetry.log.warning("fabric closed for a while", peer=peer_id_text(peer), reason=why, closed_s=closed_s)

    def _cannot_open(self, peer: PeerId, match: Match, why: str) -> None:
        """A fabric could not be opened with a peer: this way is left out for a while, and others are tried."""
        closed_s = self._kinds.handle_error(_way_key(peer, match), why, self.now())
        told = {"peer": peer_id_text(peer), "kind": match.kind.name.lower(), "reason": why, "closed_s": closed_s}
        self._telemetry.log.warning("fabric closed for a while", **told)

    def succeeded(self, session: Session) -> None:
        """A transfer to a peer went well."""
        key = _key(session.peer, session.kind)
        if key in self._n_late:
            self._n_late[key] = 0
        self._peers.handle_success(session.peer)
        if key in self._begun:
            self._kinds.handle_success(_way_key(session.peer, self._begun[key]))

    def was_late(self, session: Session, why: str) -> None:
        """A peer has not taken a transfer in time. It may be busy; a fabric that is late time after time carries nothing."""
        if self._held(on_device=reaches_devices(session.kind)).get(session.peer) is not session:
            return
        key = _key(session.peer, session.kind)
        n_late = self._n_late[key] = self._n_late[key] + 1
        self._telemetry.log.info("transfer late", peer=peer_id_text(session.peer), in_a_row=n_late)
        if n_late >= LATES_MAX:
            self.fault(session, why)

    def fell_back(self, kind: Kind, failed_at: float) -> None:
        """The first bytes of a transfer have left by the stream; the first sign that the fabric fails came at `failed_at`."""
        took_s = self.now() - failed_at
        self._n_fallbacks += 1
        self._fallback_s_max = max(self._fallback_s_max, took_s)
        self._telemetry.fabric_fell_back(kind, took_s)

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
            del lane  # with all that its transfers hold

    async def _watch_leases(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            for session in self._all_sessions():
                session.handle_timer(self.now())

    def status(self) -> dict[str, object]:
        """The fabrics that are there, and why others are not, for people."""
        here = [opener for opener in self._openers.values() if not opener.absent]
        absent = {**dict(self._absent), **{opener.kind: opener.absent for opener in self._openers.values() if opener.absent}}
        thresholds = [crossover_bytes(opener.way(Match(opener.kind)), STREAM) for opener in here]
        on_device = {peer_id_text(peer): session.figures() for peer, session in self._device_sessions.items()}
        told = {opener.kind.name.lower(): figures for opener in here if (figures := opener.figures())}
        return {
            "kinds": [opener.kind.name.lower() for opener in here],
            "absent": {kind.name.lower(): f"absent: {absent[kind]}" for kind in sorted(absent)},
            "from_bytes": round(min(thresholds)) if thresholds else None,
            "open": {
                peer_id_text(peer): {"kind": session.kind.name.lower(), **session.figures()}
                for peer, session in self._sessions.items()
            },
            **({"open_on_device": on_device} if on_device else {}),
            "fallbacks": {"count": self._n_fallbacks, "longest_s": round(self._fallback_s_max, 6)},
            **told,
        }


def _key(peer: PeerId, kind: Kind) -> PeerId:
    """What stands for a kind of fabric with a peer where peers are remembered."""
    return PeerId(peer + bytes([kind]))


def _way_key(peer: PeerId, match: Match) -> PeerId:
    """The same for a way to open a fabric: each pair of RDMA ports is one."""
    ports = (match.own_port, match.their_port) if match.kind is Kind.RDMA else ()
    return PeerId(_key(peer, match.kind) + bytes(ports))
