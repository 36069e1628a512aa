"""The core of one node: its machines, composed."""

from protocol.node.config import NodeConfig, Output, PeerFacts, PeerView, RecordSealed, ReserveSequences
from protocol.node.machine import Node

__all__ = ["Node", "NodeConfig", "Output", "PeerFacts", "PeerView", "RecordSealed", "ReserveSequences"]
