"""The trio shell round the QUIC endpoint: sockets, connections and streams that block."""

import logging

from mesh.transport.config import TransportConfig
from mesh.transport.connection import Connection
from mesh.transport.door import Door
from mesh.transport.errors import ConnectionLost, StreamReset, TransportError
from mesh.transport.reception import Handler
from mesh.transport.stream import Stream
from mesh.transport.transport import Transport
from mesh.transport.watch import Doing, Seen, Watcher

# The QUIC libraries log every fault of a peer; here a fault is an output of the endpoint, counted and told once.
logging.getLogger("quic").setLevel(logging.CRITICAL)

__all__ = [
    "Connection",
    "ConnectionLost",
    "Doing",
    "Door",
    "Handler",
    "Seen",
    "Stream",
    "StreamReset",
    "Transport",
    "TransportConfig",
    "TransportError",
    "Watcher",
]
