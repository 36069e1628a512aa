"""A handshake in memory, before the first in earnest: what a library does only once is done by then.

The first ClientHello that a process takes makes the compiled engine gather entropy and set up its tables: 24 ms of a core, in
which everybody else waits. The whole handshake is gone through once, for a few milliseconds, before the node listens.

Spec: docs/spec/02-transport.md, section "Engines".
"""

from protocol.identity import PeerId
from protocol.quic.retry import read_initial
from protocol.quic.seam import EngineConnection, EngineSetup, HandshakeFinished, QuicEngine

ROUNDS_MAX = 8
"""Turns of both sides after which it is given up: a handshake takes two, and its confirmation a third."""

NOWHERE = ("192.0.2.1", 1)
"""Where both sides are said to be: an address that is nobody's (RFC 5737)."""


def rehearse(engine: QuicEngine, setup: EngineSetup, own: PeerId, now: float) -> bool:
    """Let a client and a server of the same node shake hands; return whether both finished."""
    client = engine.connect(setup, NOWHERE, lambda _: own, now)
    flight = client.transmits(now)
    initial = read_initial(flight[0][0]) if flight else None
    if initial is None:
        return False
    server = engine.accept(setup, initial.cid, lambda _: own)
    finished = set[str]()
    for _ in range(ROUNDS_MAX):
        server.receive([data for data, _ in flight], NOWHERE, now)
        client.receive([data for data, _ in server.transmits(now)], NOWHERE, now)
        flight = client.transmits(now)
        finished |= {name for name, side in (("client", client), ("server", server)) if _is_finished(side)}
        if len(finished) == 2:
            break
    return len(finished) == 2


def _is_finished(side: EngineConnection) -> bool:
    """Take what a side has to say; whether its handshake is over."""
    is_finished = False
    while (event := side.next_event()) is not None:
        is_finished = is_finished or isinstance(event, HandshakeFinished)
    return is_finished
