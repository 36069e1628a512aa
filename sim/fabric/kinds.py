"""All kinds of fabric as one, and how both ends of one are joined."""

from protocol.errors import RemoteProtocolError
from sim.fabric.poolsessions import CxlSession
from sim.fabric.sessions import SAY_S, GpuSession, RdmaSession, ShmSession

Reading = ShmSession | CxlSession | GpuSession
"""Sessions whose receiver reads."""

Session = Reading | RdmaSession
"""All of them."""


def connect(one: Session, other: Session, delay_s: float = SAY_S) -> None:
    """Joins both ends of a fabric: what each says beside transfers reaches the other in order."""
    for end, peer in ((one, other), (other, one)):

        def say(word: bytes, end: Session = end, peer: Session = peer) -> None:
            if not end.closed:
                peer.clock.after(delay_s, lambda: None if peer.closed else _heard(peer, word))

        end.say = say
        if isinstance(end, ShmSession):
            assert isinstance(peer, ShmSession)
            end.other = peer
        elif isinstance(end, RdmaSession):
            assert isinstance(peer, RdmaSession)
            end.other = peer


def _heard(session: Session, word: bytes) -> None:
    try:
        session.hear(word)
    except RemoteProtocolError as error:
        session.close(error.detail)


def refresh(session: Session) -> None:
    """What a session does once a second."""
    if not session.closed:
        session.tick()
