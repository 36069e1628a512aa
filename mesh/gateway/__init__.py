"""The node's front door: an OpenAI-compatible HTTP API on loopback, and the pages the command line reads.

The server itself, `mesh.gateway.server`, is not handed on here: it brings the HTTP libraries, which a node imports only when it
already listens for peers.
"""

from mesh.gateway.config import GatewayAddressError, GatewayConfig
from mesh.gateway.ports import Answer, CatalogueEntry, DispatcherPort
from mesh.gateway.tls import server_context

__all__ = [
    "Answer",
    "CatalogueEntry",
    "DispatcherPort",
    "GatewayAddressError",
    "GatewayConfig",
    "server_context",
]
