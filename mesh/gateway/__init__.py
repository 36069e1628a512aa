"""The node's front door: an OpenAI-compatible HTTP API on loopback, and the pages the command line reads."""

from mesh.gateway.config import GatewayConfig
from mesh.gateway.ports import Answer, CatalogueEntry, DispatcherPort
from mesh.gateway.server import Gateway, GatewayAddressError
from mesh.gateway.tls import server_context

__all__ = [
    "Answer",
    "CatalogueEntry",
    "DispatcherPort",
    "Gateway",
    "GatewayAddressError",
    "GatewayConfig",
    "server_context",
]
