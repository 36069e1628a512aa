"""Streams to peers for requests: on the connection that there is, or on one that is dialled for it.

Spec: docs/spec/06-inference.md, section "Asking".
"""

import trio

from mesh.transport import Connection, ConnectionLost, Stream, Transport
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.node import Node
from protocol.wire.inference import PROTOCOL_ID


async def stream_to(peer: PeerId, node: Node, transport: Transport, dial_s: float) -> Stream:
    """A stream to a peer itself, which is dialled for so long where it is not connected.

    Raises:
        ConnectionLost: no connection could be had.
        StreamReset: the peer opens no stream.
    """
    with trio.move_on_after(dial_s):
        connection = await _connection_to(peer, node, transport)
        return await connection.open_stream(PROTOCOL_ID)
    raise ConnectionLost(ErrorCode.UNREACHABLE, f"no connection within {dial_s:g} s")


async def _connection_to(peer: PeerId, node: Node, transport: Transport) -> Connection:
    """The connection to a peer; where there is none its addresses are dialled in turn.

    Raises:
        ConnectionLost: no connection could be had.
    """
    connection = transport.connections.get(peer)
    if connection is not None:
        return connection
    card = node.peer(peer, transport.now()).card
    lost = ConnectionLost(ErrorCode.UNREACHABLE, "no address of the peer is known")
    for address in () if card is None else card.addresses:
        try:
            return await transport.dial(address.with_peer(peer))
        except ConnectionLost as error:
            lost = error
    raise lost
