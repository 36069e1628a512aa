"""How a fabric between two processes of a world is opened: over a stream, with the words of chapter 11 and its codec.

Whoever has a request asks for the kinds that both cards have; the other says a door of the first that it has, whoever asked
enters it, and the other says that it is in. Where that breaks, or takes more than 200 ms, the request goes on without, or with
another kind.

Spec: docs/spec/11-fabric.md, section "Opening".
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Kind, Match
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
from protocol.fabric.pools import Enter, Entered, decode_token, decode_word, encode_token, encode_word
from sim.fabric.hardware import run_step
from sim.fabric.kinds import Session
from sim.fabric.sessions import SAY_S, RdmaSession, ShmSession
from sim.process import Link, Process
from sim.streams import Broken, StreamEnd

if TYPE_CHECKING:
    from sim.fabric.nodes import NodeFabrics

OPEN_S_MAX = 0.2
"""How long a request waits for a fabric to be opened, in seconds (ISO-FAB-006)."""

FABRIC = "fabric"
"""Name of streams by which fabrics are opened."""

ENTER, READY = b"enter", b"ready"
"""Words of an opening, where the kind has none of its own."""


class Opening:
    """One opening, as the process sees it that has a request."""

    def __init__(self, own: "NodeFabrics", link: Link, peer: Process, shared: Sequence[Match], done: Callable[[], None]) -> None:
        """Begins with `knock`.

        Args:
            own: the fabrics of the process.
            link: the connection to the peer.
            peer: whom.
            shared: what both have, the preferred first.
            done: called once, when a fabric is open or none can be.
        """
        self.own, self.link, self.peer = own, link, peer
        self.left: dict[Kind, Match] = {}
        for match in shared:
            self.left.setdefault(match.kind, match)
        self._done = done
        self._is_over = False
        self._match: Match | None = None
        own.timer.after(OPEN_S_MAX, self._late)

    def knock(self) -> None:
        """Asks for a door of one of the kinds that are left."""
        if not self.left or not self.own.is_alive:
            self._end()
            return
        self._match = None
        self.stream = self.own.fabrics.streams.open(self.link, self.own.process, self.peer, FABRIC)
        self.stream.on_data, self.stream.on_broken = self._hear, self._broke
        self._decoder = FrameDecoder(1 << 16)
        self._say(encode_hello(Hello(tuple(map(int, self.left)), self.own.luck.randbytes(NONCE_BYTES))))

    def _say(self, frame: bytes) -> None:
        self.stream.send(encode_frame(frame))

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._done()

    def _late(self) -> None:
        if not self._is_over:
            for kind in self.left if self._match is None else [self._match.kind]:
                self.own.cannot_open(self.peer.peer_id, kind, "it was not open in time")
            self.stream.reset(ErrorCode.FABRIC_FAILED)
            self._end()

    def _broke(self, broken: Broken) -> None:
        del broken
        self._failed()

    def _failed(self) -> None:
        """A kind cannot be opened; the next is tried."""
        if self._is_over:
            return
        kinds = list(self.left) if self._match is None else [self._match.kind]
        for kind in kinds:
            self.left.pop(kind, None)
            self.own.cannot_open(self.peer.peer_id, kind, "it could not be opened")
        self.stream.reset(ErrorCode.FABRIC_FAILED)
        self.knock()

    def _hear(self, data: bytes) -> None:
        self._decoder.receive(data)
        while not self._is_over and (frame := self._decoder.next_frame()) is not None:
            try:
                self._take(frame)
            except RemoteProtocolError:
                self._failed()
                return

    def _take(self, frame: bytes) -> None:
        if self._match is not None:
            self._entered(frame)
            return
        answer = decode_opening(frame)
        if isinstance(answer, Shut):
            self.stream.close()
            self._end()
            return
        match = self._match = self.left.pop(answer.kind)
        if match.kind is Kind.CXL:
            member = self.own.member
            if member is None or not member.owner.is_owner(decode_token(answer.place, member.host.layout)):
                raise RemoteProtocolError(ErrorCode.STALE_LEASE, "the slot is not the peer's")
        run_step(self.own.timer, self.own.hardware, match.kind, "knock", self._enter, self._failed)

    def _enter(self) -> None:
        member = self.own.member
        if self._is_over:
            return
        assert self._match is not None
        if self._match.kind is not Kind.CXL:
            self._say(ENTER)
        elif member is not None:
            self._say(encode_word(Enter(encode_token(member.owner.token))))
        else:
            self._failed()

    def _entered(self, frame: bytes) -> None:
        match, fabrics = self._match, self.own.fabrics
        assert match is not None
        right = decode_word(frame) == Entered() if match.kind is Kind.CXL else frame == READY
        other = fabrics.nodes.get(self.peer.index)
        half = fabrics.halves.pop(self.stream.number, None)
        gone = other is None or (match.kind is Kind.CXL and (self.own.member is None or other.member is None))
        if not right or half is None or half[0].closed or gone:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the other side is gone")
        assert other is not None
        session = self.own.make(match, other)
        join(session, self.stream, half[0], half[1])
        self.own.begin(self.peer.peer_id, session)
        self._end()


class Answering:
    """One opening, as the process sees it that is asked."""

    def __init__(self, own: "NodeFabrics", stream: StreamEnd) -> None:
        """Waits for what the other side asks for."""
        self.own, self.stream = own, stream
        self._decoder = FrameDecoder(1 << 16)
        self._match: Match | None = None
        self._token = b""
        stream.on_data = self._hear

    def _hear(self, data: bytes) -> None:
        self._decoder.receive(data)
        while (frame := self._decoder.next_frame()) is not None:
            try:
                self._take(frame)
            except RemoteProtocolError:
                self._failed()
                return

    def _say(self, frame: bytes) -> None:
        self.stream.send(encode_frame(frame))

    def _take(self, frame: bytes) -> None:
        own = self.own
        if self._match is not None:
            match = self._match
            if match.kind is Kind.CXL:
                word = decode_word(frame)
                member = own.member
                if not isinstance(word, Enter) or member is None:
                    raise RemoteProtocolError(ErrorCode.MALFORMED, "something else than who the peer is")
                if not member.owner.is_owner(decode_token(word.token, member.host.layout)):
                    raise RemoteProtocolError(ErrorCode.STALE_LEASE, "the slot is not the peer's")
            run_step(own.timer, own.hardware, match.kind, "admit", self._admit, self._failed)
            return
        found = self._found(decode_hello(frame))
        if found is None:
            self._say(encode_opening(Shut(ErrorCode.UNSUPPORTED, "nothing of these kinds")))
            self.stream.close()
            return
        self._match = found
        place = encode_token(own.member.owner.token) if found.kind is Kind.CXL and own.member is not None else b"door"
        self._say(encode_opening(Door(found.kind, place, own.luck.randbytes(SECRET_BYTES), own.luck.randbytes(NONCE_BYTES))))

    def _found(self, hello: Hello) -> Match | None:
        """The first of the kinds asked for that there is with the peer."""
        peer, own = self.stream.peer.peer_id, self.own
        if own.peers.charge_offer(peer, own.timer.now) is not None:
            return None
        shared = {int(match.kind): match for way in (True, False) for match in own.shared(peer, on_device=way)[::-1]}
        return next((shared[kind] for kind in hello.kinds if kind in shared), None)

    def _admit(self) -> None:
        other = self.own.fabrics.nodes.get(self.stream.peer.index)
        match = self._match
        assert match is not None
        gone = other is None or (match.kind is Kind.CXL and (self.own.member is None or other.member is None))
        if gone or self.stream.over:
            self._failed()
            return
        assert other is not None
        session = self.own.make(match, other)
        self.own.fabrics.halves[self.stream.number] = session, self.stream
        self.own.begin(self.stream.peer.peer_id, session)
        self._say(encode_word(Entered()) if match.kind is Kind.CXL else READY)
        self.stream.on_broken = lambda _broken: session.close("")

    def _failed(self) -> None:
        if self._match is not None:
            self.own.cannot_open(self.stream.peer.peer_id, self._match.kind, "it could not be opened")
        self.stream.reset(ErrorCode.FABRIC_FAILED)


def join(one: Session, near: StreamEnd, other: Session, far: StreamEnd) -> None:
    """Joins both ends of a fabric: by the stream of its opening, or by the local socket of shared memory."""
    for end, stream, peer in ((one, near, other), (other, far, one)):
        if isinstance(end, ShmSession):
            assert isinstance(peer, ShmSession)
            end.other = peer
            _by_socket(end, peer)
            stream.on_broken = lambda _broken: None
            stream.close()
        else:
            if isinstance(end, RdmaSession):
                assert isinstance(peer, RdmaSession)
                end.other = peer
            _by_stream(end, stream)


def _by_socket(end: ShmSession, peer: ShmSession) -> None:
    """The end of one side is told to the other by the kernel."""
    end.on_end = lambda why: peer.clock.after(SAY_S, lambda: peer.close(why and "the other end has closed it"))


def _by_stream(end: Session, stream: StreamEnd) -> None:
    """What is said beside transfers goes by the stream, whose end is the end of the fabric."""
    decoder = FrameDecoder(1 << 16)

    def hear(data: bytes) -> None:
        decoder.receive(data)
        while (frame := decoder.next_frame()) is not None:
            try:
                if not end.closed:
                    end.hear(frame)
            except RemoteProtocolError as error:
                end.close(error.detail)

    end.say = lambda word: stream.send(encode_frame(word))
    end.on_end = lambda why: stream.reset(ErrorCode.FABRIC_FAILED if why else ErrorCode.NO_ERROR)
    stream.on_data = hear
    stream.on_broken = lambda broken: end.close("the other end has closed it" if broken.code is ErrorCode.FABRIC_FAILED else "")
