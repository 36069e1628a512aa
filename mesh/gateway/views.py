"""How the mesh's values look from outside: the route in a header, and models and routes as JSON.

Spec: docs/gateway.md, sections "Headers" and "Looking inside".
"""

from collections.abc import Sequence

from mesh.gateway.ports import CatalogueEntry
from protocol.identity import peer_id_text
from protocol.routing import RouteReport


def route_headers(route: RouteReport) -> dict[str, str]:
    """The headers that say who answered, how far away it is and how fast it was; none before the first output.

    `x-mesh-route` is a list `name=value` separated by semicolons; times are milliseconds with the unit; what is not known is
    left out.
    """
    if route.chosen is None or route.measured_s is None:
        return {}
    parts: list[str] = []
    for candidate in route.candidates:
        if candidate.peer_id == route.chosen:
            parts += _milliseconds("rtt", candidate.rtt_s)
            parts += _milliseconds("queue", candidate.queue_s)
            parts += _milliseconds("service", candidate.service_s)
            break
    parts += _milliseconds("predicted", route.predicted_s)
    parts += _milliseconds("measured", route.measured_s)
    parts.append(f"hops={route.hops}")
    return {"x-mesh-node": peer_id_text(route.chosen), "x-mesh-route": ";".join(parts)}


def _milliseconds(name: str, value_s: float | None) -> list[str]:
    return [] if value_s is None else [f"{name}={value_s * 1000:.1f}ms"]


def route_json(route: RouteReport) -> dict[str, object]:
    """The whole report; times are seconds, peers are peer ids as text."""
    return {
        "request_id": route.request_id,
        "model": route.model,
        "feature": str(route.feature),
        "chosen": None if route.chosen is None else peer_id_text(route.chosen),
        "predicted_s": route.predicted_s,
        "measured_s": route.measured_s,
        "hops": route.hops,
        "probed": route.probed,
        "probing_s": route.probing_s,
        "candidates": [
            {
                "peer_id": peer_id_text(candidate.peer_id),
                "qualified": candidate.qualified,
                "reason": candidate.reason,
                "rtt_s": candidate.rtt_s,
                "rtt_source": str(candidate.rtt_source),
                "via": None if candidate.via is None else peer_id_text(candidate.via),
                "queue_s": candidate.queue_s,
                "service_s": candidate.service_s,
                "predicted_s": candidate.predicted_s,
                "outcome": candidate.outcome,
                "fabric": candidate.fabric,
            }
            for candidate in route.candidates
        ],
    }


def model_json(entry: CatalogueEntry) -> dict[str, object]:
    """A model as OpenAI's clients know it."""
    return {"id": entry.offer.model, "object": "model", "created": int(entry.first_seen_s), "owned_by": "isochrone"}


def offer_json(entry: CatalogueEntry) -> dict[str, object]:
    """A model with everything the mesh knows about it."""
    return {
        "model": entry.offer.model,
        "features": sorted(feature.value for feature in entry.offer.features),
        "context_length": entry.offer.context_length,
        "precision": entry.offer.precision,
        "memory_bytes": entry.offer.memory_bytes,
        "engine": entry.offer.engine,
        "peer_ids": [peer_id_text(peer_id) for peer_id in entry.peer_ids],
        "first_seen_s": entry.first_seen_s,
    }


def models_json(entries: Sequence[CatalogueEntry]) -> list[dict[str, object]]:
    """All models, each id once, in the order of their ids."""
    by_id = {entry.offer.model: model_json(entry) for entry in entries}
    return [by_id[model] for model in sorted(by_id)]
