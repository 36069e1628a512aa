"""Gossipsub for peers that speak nothing of the mesh's own: messages, signatures, the router and its scores."""

from protocol.pubsub.config import (
    Judgement,
    MessageCame,
    Output,
    PeerSubscribed,
    PubsubConfig,
    PubsubMisbehaved,
    ScoreConfig,
    SendRpc,
    TopicScoreConfig,
    Version,
)
from protocol.pubsub.messages import RPC_BYTES_MAX, PubsubMessage, in_pieces
from protocol.pubsub.router import PubsubRouter
from protocol.pubsub.signing import SEQNO_BYTES, is_signed, sign_message

__all__ = [
    "RPC_BYTES_MAX",
    "SEQNO_BYTES",
    "Judgement",
    "MessageCame",
    "Output",
    "PeerSubscribed",
    "PubsubConfig",
    "PubsubMessage",
    "PubsubMisbehaved",
    "PubsubRouter",
    "ScoreConfig",
    "SendRpc",
    "TopicScoreConfig",
    "Version",
    "in_pieces",
    "is_signed",
    "sign_message",
]
