"""All kinds of fabric as one, and how both ends of one are joined."""

from collections.abc import Callable

from protocol.errors import RemoteProtocolError
from protocol.fabric import FabricConfig, Kind
from protocol.fabric.pools import Token
from sim.fabric.device import Device
from sim.fabric.hardware import Hardware, Timer
from sim.fabric.poolsessions import CxlSession, Member
from sim.fabric.sessions import SAY_S, Base, GpuSession, RdmaSession, ShmSession

Reading = ShmSession | CxlSession | GpuSession
"""Sessions whose receiver reads."""

Session = Reading | RdmaSession
"""All of them."""


Common = tuple[Kind, Hardware, str, FabricConfig, Timer, Callable[[Base, str], None]]
"""What every session is made of: the first six fields of `Base`."""


def session_of(common: Common, device: Device, member: Member | None, theirs: Token | None) -> Session:
    """One end of a fabric.

    Args:
        common: its kind, and what all kinds need.
        device: the GPU of the host.
        member: this process in a pool.
        theirs: who the other end is in it.
    """
    match common[0]:
        case Kind.SHM:
            return ShmSession(*common)
        case Kind.RDMA:
            return RdmaSession(*common)
        case Kind.GPU:
            return GpuSession(*common, device=device)
        case Kind.CXL:
            return CxlSession(*common, member=member, theirs=theirs)


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
