"""Membership: who is in the mesh right now, and whom to connect to."""

from protocol.membership.events import (
    Connect,
    Disconnect,
    KeepLink,
    MembershipConfig,
    Output,
    PeerForgotten,
    PeerGone,
    PeerJoined,
    PeerLeft,
    Standing,
    Target,
)
from protocol.membership.machine import Membership
from protocol.membership.roster import NO_ADDRESS, UNREACHED

__all__ = [
    "NO_ADDRESS",
    "UNREACHED",
    "Connect",
    "Disconnect",
    "KeepLink",
    "Membership",
    "MembershipConfig",
    "Output",
    "PeerForgotten",
    "PeerGone",
    "PeerJoined",
    "PeerLeft",
    "Standing",
    "Target",
]
