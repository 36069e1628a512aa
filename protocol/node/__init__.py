"""The core of one node: its machines, composed."""

from protocol.node.admitted import AdmittedReader, expel
from protocol.node.config import NodeConfig, Output, PeerFacts, PeerView, RecordSealed, ReserveSequences
from protocol.node.inquiries import Reranked
from protocol.node.machine import Node

__all__ = [
    "AdmittedReader",
    "Node",
    "NodeConfig",
    "Output",
    "PeerFacts",
    "PeerView",
    "RecordSealed",
    "Reranked",
    "ReserveSequences",
    "expel",
]
