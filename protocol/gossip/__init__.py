"""Gossip: how records spread over a mesh of links, and are compared where something was missed."""

from protocol.gossip.events import (
    BeatHeard,
    Equivocated,
    GossipConfig,
    Grafted,
    LinkKept,
    Misbehaved,
    Output,
    OwnRecordHeard,
    Pruned,
    RecordAccepted,
    RecordEvicted,
    RecordExpired,
    RecordRefused,
    Send,
)
from protocol.gossip.horizon import HorizonConfig
from protocol.gossip.machine import Gossip
from protocol.gossip.messages import GOSSIP_PROTOCOL, MESSAGE_BYTES_MAX, Message, in_pieces
from protocol.gossip.reader import GossipReader

__all__ = [
    "GOSSIP_PROTOCOL",
    "MESSAGE_BYTES_MAX",
    "BeatHeard",
    "Equivocated",
    "Gossip",
    "GossipConfig",
    "GossipReader",
    "Grafted",
    "HorizonConfig",
    "LinkKept",
    "Message",
    "Misbehaved",
    "Output",
    "OwnRecordHeard",
    "Pruned",
    "RecordAccepted",
    "RecordEvicted",
    "RecordExpired",
    "RecordRefused",
    "Send",
    "in_pieces",
]
