"""Gossip: how records spread, by pushing news and by comparing digests."""

from protocol.gossip.events import (
    Equivocated,
    GossipConfig,
    Misbehaved,
    Output,
    OwnRecordHeard,
    RecordAccepted,
    RecordExpired,
    RecordRefused,
    Send,
)
from protocol.gossip.machine import Gossip
from protocol.gossip.messages import MESSAGE_BYTES_MAX

__all__ = [
    "MESSAGE_BYTES_MAX",
    "Equivocated",
    "Gossip",
    "GossipConfig",
    "Misbehaved",
    "Output",
    "OwnRecordHeard",
    "RecordAccepted",
    "RecordExpired",
    "RecordRefused",
    "Send",
]
