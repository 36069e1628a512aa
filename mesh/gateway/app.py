"""The gateway's pages: OpenAI's API for clients, health and metrics for operators, and the mesh's own views for the command line.

Every handler returns at once; only `Exchange` waits for the mesh. What a handler refuses it raises as `ApiError`, and everything
that starlette refuses (an unknown path, a wrong method) takes the same shape.

Spec: docs/gateway.md.
"""

import math
import re
from collections.abc import Callable
from fractions import Fraction

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.gateway.answers import encode
from mesh.gateway.config import GatewayConfig
from mesh.gateway.distances import DistancePages
from mesh.gateway.doorman import REQUEST_ID_KEY
from mesh.gateway.exchange import Exchange
from mesh.gateway.failures import ApiError
from mesh.gateway.ports import DispatcherPort
from mesh.gateway.sanitise import Call, parse_call
from mesh.gateway.tracing import TraceStream
from mesh.gateway.views import model_json, models_json, offer_json, route_json
from mesh.telemetry import Telemetry
from protocol.inference import Feature, InferenceRequest
from protocol.wire.inference import MEMORY_BYTES_MAX

WHOLE_DEADLINE_HEADER = "x-request-timeout"
"""Seconds the client waits for the whole answer."""

READ_DEADLINE_HEADER = "x-stainless-read-timeout"
"""Seconds the official clients wait between two reads: for an answer in one piece, the whole wait."""

MEMORY_HEADER = "x-mesh-min-memory"
"""Least accelerator or host memory that the executing node must have."""

_MEMORY = re.compile(r"([0-9]{1,16}) ?(GB|GiB)?|([0-9]{1,7}\.[0-9]{1,9}) ?(GB|GiB)", re.ASCII)
"""A number of bytes, or of gigabytes with their unit, which may have a fraction."""

_UNIT_BYTES = {None: 1, "GB": 10**9, "GiB": 2**30}
"""Bytes in one of each unit: SI's and IEC 80000-13's."""


class Pages:
    """The handlers, and what they need."""

    def __init__(
        self, config: GatewayConfig, dispatcher: DispatcherPort, telemetry: Telemetry, is_draining: Callable[[], bool]
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._is_draining = is_draining
        self.distances = DistancePages(dispatcher.distances, dispatcher.map)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._infer(request, Feature.CHAT)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._infer(request, Feature.COMPLETIONS)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        return await self._infer(request, Feature.EMBEDDINGS)

    async def _infer(self, request: Request, feature: Feature) -> Response:
        media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json":
            message = f"Send the body as content-type application/json, not {media_type[:64]!r}."
            raise ApiError(415, "unsupported_media_type", message, retry=False)
        if self._is_draining():
            raise ApiError(503, "draining", "This node is leaving the mesh.", retry_after_s=1.0)
        call = parse_call(feature, await request.body(), self._config)
        wire_request = InferenceRequest(
            request_id=request.scope["state"][REQUEST_ID_KEY],
            feature=feature,
            model=call.model,
            body=call.body,
            deadline_s=self._deadline_s(request, call),
            stream=call.stream,
            memory_bytes=_memory_bytes(request),
            output_tokens=call.output_tokens,
            receipt=True,
        )
        return Exchange(call, wire_request, self._dispatcher, self._telemetry, self._config)

    def _deadline_s(self, request: Request, call: Call) -> float:
        """How long the client waits, as it says itself, within the configured range."""
        wished_s = _seconds(request, WHOLE_DEADLINE_HEADER)
        if wished_s is None and not call.stream:
            wished_s = _seconds(request, READ_DEADLINE_HEADER)
        if wished_s is None:
            wished_s = self._config.deadline_default_s
        return min(max(wished_s, self._config.deadline_min_s), self._config.deadline_max_s)

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": models_json(self._dispatcher.catalogue())})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        wanted = request.path_params["model"]
        for entry in self._dispatcher.catalogue():
            if entry.offer.model == wanted:
                return _json(model_json(entry))
        raise ApiError(404, "model_not_found", f"The model {wanted[:256]!r} does not exist.", param="model", retry=False)

    async def health(self, _request: Request) -> Response:
        """GET /health."""
        return _json({"status": "draining"}, 503) if self._is_draining() else _json({"status": "ok"})

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        content, media_type = self._telemetry.render_metrics()
        return Response(content, headers={"content-type": media_type})

    async def mesh_status(self, _request: Request) -> Response:
        """GET /mesh/status."""
        return _json(dict(self._dispatcher.status()))

    async def mesh_peers(self, _request: Request) -> Response:
        """GET /mesh/peers."""
        return _json({"peers": [dict(peer) for peer in self._dispatcher.peers()]})

    async def mesh_models(self, _request: Request) -> Response:
        """GET /mesh/models."""
        entries = sorted(self._dispatcher.catalogue(), key=lambda entry: entry.offer.model)
        return _json({"models": [offer_json(entry) for entry in entries]})

    async def mesh_explain(self, request: Request) -> Response:
        """GET /mesh/explain/{request_id}."""
        wanted = request.path_params["request_id"]
        route = self._dispatcher.explain(wanted)
        if route is None:
            message = f"The request {wanted[:64]!r} is not known; only the most recent ones are kept."
            raise ApiError(404, "request_not_found", message, param="request_id", retry=False)
        return _json(route_json(route))

    async def mesh_receipt(self, request: Request) -> Response:
        """GET /mesh/receipt/{request_id}."""
        wanted = request.path_params["request_id"]
        receipt = self._dispatcher.receipt(wanted, content=request.query_params.get("content") == "1")
        if receipt is None:
            message = f"There is no receipt of the request {wanted[:64]!r}; only the most recent ones are kept."
            raise ApiError(404, "receipt_not_found", message, param="request_id", retry=False)
        return _json(dict(receipt))

    async def mesh_trace(self, request: Request) -> Response:
        """GET /mesh/trace/{peer}."""
        peer, content = request.path_params["peer"], request.query_params.get("content") == "1"
        try:
            for_s = float(request.query_params.get("for", "inf"))
        except ValueError:
            raise ApiError(400, "bad_request", "for is a number of seconds.", param="for", retry=False) from None
        return TraceStream(lambda: self._dispatcher.trace(peer, content=content), self._is_draining, for_s)

    async def mesh_protocols(self, _request: Request) -> Response:
        """GET /mesh/protocols."""
        return _json(dict(self._dispatcher.protocols()))


def build_app(pages: Pages, refused: Callable[[str], None]) -> Starlette:
    """Put the pages at their paths; `refused` hears the code of every refusal made before the mesh was asked."""

    async def _on_api_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        refused(error.code)
        return error.response()

    async def _on_http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        refused(code)
        return ApiError(error.status_code, code, f"{error.detail}.", retry=False).response(dict(error.headers or {}))

    async def _on_internal_error(_request: Request, _error: Exception) -> Response:
        return ApiError(500, "internal", "The gateway failed; its log says why.").response()

    app = Starlette(
        routes=[
            Route("/v1/models", pages.models, methods=["GET"]),
            Route("/v1/models/{model:path}", pages.model, methods=["GET"]),
            Route("/v1/embeddings", pages.embeddings, methods=["POST"]),
            Route("/v1/chat/completions", pages.chat, methods=["POST"]),
            Route("/v1/completions", pages.completions, methods=["POST"]),
            Route("/health", pages.health, methods=["GET"]),
            Route("/metrics", pages.metrics, methods=["GET"]),
            Route("/mesh/status", pages.mesh_status, methods=["GET"]),
            Route("/mesh/peers", pages.mesh_peers, methods=["GET"]),
            Route("/mesh/models", pages.mesh_models, methods=["GET"]),
            Route("/mesh/explain/{request_id}", pages.mesh_explain, methods=["GET"]),
            Route("/mesh/receipt/{request_id}", pages.mesh_receipt, methods=["GET"]),
            Route("/mesh/trace/{peer}", pages.mesh_trace, methods=["GET"]),
            Route("/mesh/protocols", pages.mesh_protocols, methods=["GET"]),
            *pages.distances.routes(),
        ],
        exception_handlers={ApiError: _on_api_error, HTTPException: _on_http_error, 500: _on_internal_error},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the client's Host header
    return app


def _json(payload: object, status: int = 200) -> Response:
    return Response(encode(payload), status, media_type="application/json")


def _seconds(request: Request, header: str) -> float | None:
    """A positive number of seconds from a header, or None."""
    try:
        value = float(request.headers.get(header, ""))
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None


def _memory_bytes(request: Request) -> int:
    """What the memory header asks for, 0 where it is absent; a fraction of a byte counts as a byte.

    Raises:
        ApiError: status 400, for what is no size, is too large, or stands there twice.
    """
    told = request.headers.getlist(MEMORY_HEADER)
    if not told:
        return 0
    match = _MEMORY.fullmatch(told[0].strip()) if len(told) == 1 else None
    if match is not None:
        needed = math.ceil(Fraction(match[1] or match[3]) * _UNIT_BYTES[match[2] or match[4]])
        if needed <= MEMORY_BYTES_MAX:
            return needed
    message = (
        f"Invalid value for the header {MEMORY_HEADER}: {', '.join(told)[:64]!r}; expected one number of bytes, or a number with "
        f"the unit GB or GiB, of at most {MEMORY_BYTES_MAX} bytes."
    )
    raise ApiError(400, "invalid_value", message, param=MEMORY_HEADER, retry=False)
