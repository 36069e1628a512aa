"""How the node and its peers look from outside: the JSON behind `isochrone status` and `isochrone peers`.

Keys that end in `_s` hold seconds and in `_ms` milliseconds; what is not known is null.

Spec: docs/gateway.md, section "Looking inside".
"""

from mesh.transport import Transport
from protocol.identity import peer_id_text
from protocol.membership import Standing
from protocol.node import Node, PeerView


def peer_json(view: PeerView) -> dict[str, object]:
    """One peer as a JSON object."""
    card, beat, quality = view.card, view.beat, view.quality
    rtt_s = quality.rtt_s if quality is not None else None
    source = "measured" if quality is not None else "coordinate" if view.coordinate_rtt_s is not None else "unknown"
    loads = () if beat is None else beat.loads
    return {
        "peer_id": peer_id_text(view.peer_id),
        "standing": str(view.standing),
        "why": view.why,
        "connected": view.connected,
        "rtt_s": rtt_s if rtt_s is not None else view.coordinate_rtt_s,
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 3),
        "rtt_source": source,
        "coordinate_rtt_s": view.coordinate_rtt_s,
        "jitter_s": None if quality is None else quality.jitter_s,
        "loss": None if quality is None else quality.loss,
        "samples": 0 if quality is None else quality.samples,
        "models": [] if card is None else [offer.model for offer in card.models],
        "running": sum(load.running for load in loads),
        "waiting": sum(load.waiting for load in loads),
        "draining": False if beat is None else beat.draining,
        "addresses": [] if card is None else [str(address) for address in card.addresses],
        "hardware": None if card is None else hardware_json(view),
        "agent": "" if card is None else card.agent,
    }


def hardware_json(view: PeerView) -> dict[str, object]:
    """A peer's hardware as its card claims it."""
    assert view.card is not None
    hardware = view.card.hardware
    return {
        "cpu": hardware.cpu_model,
        "cores": hardware.cpu_count,
        "memory_bytes": hardware.memory_bytes,
        "numa_nodes": hardware.numa_nodes,
        "gpus": [
            {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "bus_mbps": gpu.bus_mbps or None, "numa_node": gpu.numa_node}
            for gpu in hardware.gpus
        ],
        "nics": [
            {
                "name": nic.name,
                "speed_mbps": nic.speed_mbps,
                "mtu_bytes": nic.mtu_bytes,
                "bus_mbps": nic.bus_mbps or None,
                "numa_node": nic.numa_node,
            }
            for nic in hardware.nics
        ],
    }


def status_json(node: Node, transport: Transport, now: float) -> dict[str, object]:
    """This node as a JSON object."""
    standings = node.views.standings(now)
    coordinate = node.vivaldi.coordinate
    return {
        "peer_id": peer_id_text(node.peer_id),
        "network": node.config.network_id,
        "agent": node.config.agent,
        "quic_engine": transport.engine.name,
        "addresses": [str(address.with_peer(node.peer_id)) for address in transport.addresses],
        "peers_alive": standings.count(Standing.ALIVE),
        "peers_known": len(standings),
        "connections": len(transport.connections),
        "records": len(node.table),
        "coordinate": {
            "vector_ms": [round(component * 1000, 3) for component in coordinate.vector],
            "height_ms": round(coordinate.height_s * 1000, 3),
            "error": round(coordinate.error, 3),
        },
    }
