"""The protocols that every libp2p peer speaks: ping, identify and identify push, both ends.

Spec: docs/spec/02-transport.md, section "Ping"; docs/spec/01-identity.md, sections "Identify" and "Identify push".
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from mesh.transport.errors import StreamReset, TransportError
from mesh.transport.watch import Doing
from protocol.budget import Verdict
from protocol.conduct import Account
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import encode_public_key
from protocol.libp2p.envelope import seal_peer_record
from protocol.libp2p.identify import (
    IDENTIFY_PROTOCOL,
    IDENTIFY_PUSH_PROTOCOL,
    Identify,
    IdentifyReader,
    encode_identify,
)
from protocol.libp2p.ping import PING_BYTES, PING_PROTOCOL, PingDialer, PingListener

if TYPE_CHECKING:
    from mesh.transport.connection import Connection
    from mesh.transport.stream import Stream
    from mesh.transport.transport import Transport

_T = TypeVar("_T")


async def ping(connection: "Connection", transport: "Transport") -> float:
    """Send one ping and return its round trip in seconds."""
    config = transport.config.ping
    dialer = PingDialer(config)
    with trio.move_on_after(config.timeout_s):
        async with connection.pinging, await connection.open_stream(PING_PROTOCOL) as stream:
            nonce = dialer.start(transport.entropy(PING_BYTES), transport.now())
            stream.tell(Doing.FRAME, sent=True, data=nonce)
            await stream.send_all(nonce)
            while data := await stream.receive_some():
                stream.tell(Doing.FRAME, sent=False, data=data)
                rtt_s = _checked(stream, functools.partial(dialer.handle_data, data, transport.now()))
                if rtt_s is not None:
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass  # until the peer has ended its side too, the stream counts against its limit of ping streams
                    return rtt_s
            raise StreamReset(ErrorCode.MALFORMED, "the peer ended the stream before it echoed the ping")
    raise StreamReset(ErrorCode.IDLE, f"no echo within {config.timeout_s:g} s")


async def identify(connection: "Connection", transport: "Transport") -> Identify:
    """Ask a peer what it says of itself."""
    with trio.move_on_after(transport.config.negotiation_timeout_s):
        async with await connection.open_stream(IDENTIFY_PROTOCOL) as stream:
            await stream.send_eof()
            said = await _read_identify(stream)
            _checked(stream, functools.partial(connection.description.answered, said))
            return said
    raise StreamReset(ErrorCode.IDLE, f"no answer within {transport.config.negotiation_timeout_s:g} s")


async def serve_ping(stream: "Stream", transport: "Transport") -> None:
    """Echo until the peer ends the stream or is silent for too long."""
    listener = PingListener(transport.now(), transport.config.ping)
    while True:
        data = b""
        with trio.move_on_after(max(0.0, listener.next_timer() - transport.now())):
            data = await stream.receive_some()
            if not data:
                return
            stream.tell(Doing.FRAME, sent=False, data=data)
        listener.handle_timer(transport.now())
        echo = listener.handle_data(data, transport.now())
        if echo:
            stream.tell(Doing.FRAME, sent=True, data=echo)
            await stream.send_all(echo)


async def serve_identify(stream: "Stream", transport: "Transport") -> None:
    """Say who this node is, where it listens, what it speaks, and where it sees the peer."""
    connection = stream.connection
    connection.told = _news(transport)
    await _tell(stream, transport)


async def serve_identify_push(stream: "Stream", transport: "Transport") -> None:
    """Take what a peer says unasked of itself."""
    with trio.move_on_after(transport.config.negotiation_timeout_s):
        if transport.charge(stream.peer_id, Account.VERIFICATIONS) is not Verdict.GRANTED:
            raise RemoteProtocolError(ErrorCode.FLOODING, "too many signatures to verify")
        news = await _read_identify(stream)
        _checked(stream, functools.partial(stream.connection.description.pushed, news))
        return
    raise RemoteProtocolError(ErrorCode.IDLE, f"the push took longer than {transport.config.negotiation_timeout_s:g} s")


class Pusher:
    """Tells peers what has changed of this node: those that asked, since the others have nothing to correct."""

    def __init__(self, transport: "Transport") -> None:
        self._transport = transport
        self._changed = trio.Event()

    def changed(self) -> None:
        """Addresses or protocols may be others now."""
        self._changed.set()

    async def run(self) -> None:
        """Push after each change until cancelled; changes in quick succession go together."""
        transport = self._transport
        limiter = trio.CapacityLimiter(transport.config.pushes_max)
        async with trio.open_nursery() as nursery:
            while True:
                await self._changed.wait()
                await trio.sleep(transport.config.push_delay_s)
                self._changed = trio.Event()
                news = _news(transport)
                for connection in transport.connections.values():
                    if connection.told is not None and connection.told != news:
                        connection.told = news
                        nursery.start_soon(self._push, connection, limiter)

    async def _push(self, connection: "Connection", limiter: trio.CapacityLimiter) -> None:
        transport = self._transport
        try:
            async with limiter:
                with trio.move_on_after(transport.config.negotiation_timeout_s):
                    async with await connection.open_stream(IDENTIFY_PUSH_PROTOCOL) as stream:
                        await stream.confirmed()  # first: data behind a proposal that is refused hides the refusal
                        await _tell(stream, transport, end=True)
        except TransportError as fault:
            if fault.code == ErrorCode.UNSUPPORTED:
                connection.told = None  # it will not take the next one either


def _news(transport: "Transport") -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """What of this node may change while it runs."""
    return transport.protocols, tuple(address.with_peer(None).to_bytes() for address in transport.addresses)


def _describe(connection: "Connection", transport: "Transport") -> Identify:
    protocols, addresses = _news(transport)
    return Identify(
        public_key=encode_public_key(transport.identity.public_key),
        listen_addresses=addresses,
        protocols=protocols,
        observed_address=connection.remote.with_peer(None).to_bytes(),
        protocol_version=transport.config.protocol_version,
        agent_version=transport.config.agent,
        signed_peer_record=seal_peer_record(transport.identity, transport.record_sequence(), addresses),
    )


async def _read_identify(stream: "Stream") -> Identify:
    """Read messages until the peer ends its side."""
    reader = IdentifyReader()
    while data := await stream.receive_some():
        _checked(stream, functools.partial(reader.receive_data, data))
    said = _checked(stream, reader.receive_eof)
    if stream.connection.watchers:
        stream.tell(Doing.FRAME, sent=False, data=encode_identify(said))
    return said


async def _tell(stream: "Stream", transport: "Transport", *, end: bool = False) -> None:
    """Send what this node says of itself."""
    message = encode_identify(_describe(stream.connection, transport))
    stream.tell(Doing.FRAME, sent=True, data=message)
    await stream.send_all(message, end=end)


def _checked(stream: "Stream", decode: Callable[[], _T]) -> _T:
    """Decode what a peer sent; a fault of the peer resets the stream."""
    try:
        return decode()
    except RemoteProtocolError as fault:
        stream.reset(fault.code)
        raise StreamReset(fault.code, fault.detail) from fault
