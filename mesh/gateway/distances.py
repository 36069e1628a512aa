"""The pages about distances: between two nodes, who is near one, where everybody is.

A wrong parameter is refused by name and with what to write, and one that nobody knows is refused too: a misspelt limit that
counted for nothing would answer another question.

Spec: docs/gateway.md, section "Distances".
"""

import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.distances import WITHIN_S_MAX, Distances, Near, UnknownPeerError, parse_duration
from mesh.gateway.answers import encode
from mesh.gateway.failures import ApiError
from mesh.map.collect import MapCollector

LIMIT_DEFAULT = 100
"""Peers in an answer unless asked for more, a count: what a person can read through."""

LIMIT_MAX = 10_000
"""Most peers in one answer, a count: all whose cards a node holds; four megabytes."""


class DistancePages:
    """The handlers."""

    def __init__(self, distances: Distances, collector: MapCollector) -> None:
        self._distances = distances
        self._collector = collector

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/mesh/distance/{one}", self.distance, methods=["GET"]),
            Route("/mesh/distance/{one}/{other}", self.distance, methods=["GET"]),
            Route("/mesh/near", self.near, methods=["GET"]),
            Route("/mesh/near/{of}", self.near, methods=["GET"]),
            Route("/mesh/coordinates", self.coordinates, methods=["GET"]),
            Route("/mesh/map", self.map, methods=["GET"]),
            Route("/mesh/map/{around}", self.map, methods=["GET"]),
        ]

    async def distance(self, request: Request) -> Response:
        """GET /mesh/distance/{one} and /mesh/distance/{one}/{other}."""
        _parameters(request, ())
        try:
            return _json(self._distances.distance(request.path_params["one"], request.path_params.get("other")))
        except UnknownPeerError as error:
            raise _unknown(error) from error

    async def near(self, request: Request) -> Response:
        """GET /mesh/near and /mesh/near/{of}."""
        given = _parameters(request, ("within", "model", "limit"))
        within_s = WITHIN_S_MAX
        if "within" in given:
            try:
                within_s = parse_duration(given["within"])
            except ValueError as error:
                raise _wrong("within", f"within: {error}.") from error
        wish = Near(request.path_params.get("of"), within_s, given.get("model"), _limit(given.get("limit")))
        try:
            return _json(self._distances.near(wish))
        except UnknownPeerError as error:
            raise _unknown(error) from error

    async def coordinates(self, request: Request) -> Response:
        """GET /mesh/coordinates."""
        _parameters(request, ())
        return _json({"coordinates": self._distances.coordinates()})

    async def map(self, request: Request) -> Response:
        """GET /mesh/map and /mesh/map/{around}."""
        _parameters(request, ())
        try:
            return _json(await self._collector.collect(request.path_params.get("around")))
        except UnknownPeerError as error:
            raise _unknown(error) from error


def _parameters(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The parameters of the query, each once and each known.

    Raises:
        ApiError: status 400.
    """
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise _wrong(name[:64], f"This page has no parameter {name[:64]!r}; it knows: {listed}.")
        if name in given:
            raise _wrong(name, f"The parameter {name!r} stands twice; give it once.")
        given[name] = value
    return given


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    limit = int(text) if re.fullmatch("[0-9]{1,9}", text, re.ASCII) else 0
    if not 1 <= limit <= LIMIT_MAX:
        raise _wrong("limit", f"limit: {text[:32]!r} is no number of peers; write one from 1 to {LIMIT_MAX}.")
    return limit


def _wrong(name: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=name, retry=False)


def _unknown(error: UnknownPeerError) -> ApiError:
    return ApiError(404, "peer_not_found", f"{error}.", param="peer", retry=False)


def _json(payload: object) -> Response:
    return Response(encode(payload), media_type="application/json")
