"""Whose a node is: owners stand on the certificates by which nodes show that they are members.

Spec: docs/spec/09-admission.md.
"""

from collections.abc import Callable

from mesh.admission.gate import Gate
from protocol.identity import PeerId


def has_our_owner(gate: Gate, wall: Callable[[], float], peer_id: PeerId) -> bool:
    """Whether a peer's certificate is of this node's network and names this node's owner.

    Args:
        gate: of this node.
        wall: tells the time of day, in seconds.
        peer_id: who is asked about.
    """
    own, other = gate.own(), gate.admission.member(peer_id, wall())
    return own is not None and other is not None and (own.network_id, own.owner) == (other.network_id, other.owner)
