"""Metrics and log lines: the one place where facts become something that an operator reads.

`Telemetry` owns a registry of metrics and a logger; the parts of the node call its methods with what happened. Nothing is
global, so that several nodes can live in one process. Labels that come from outside (models, peers) are bounded: past the bound
a model is counted as "other" and a peer has no gauge of its own.

Source: Prometheus, "Metric and label naming", on units in names and on the number of label values.
Spec: docs/gateway.md, section "Metrics".
"""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mesh.plain import escaped
from protocol.errors import ErrorCode
from protocol.fabric import Kind
from protocol.identity import PeerId, peer_id_text
from protocol.inference import Feature, Usage
from protocol.load import ModelLoad
from protocol.records import RecordKind

MODELS_MAX = 64
"""Most models with label values of their own; a registry of metrics never forgets one."""

PEERS_MAX = 256
"""Most peers with a gauge of their own; the rest is seen in the histogram of all round trips."""

LATENCY_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
"""Buckets for times of requests, in seconds: from one hop on a LAN to the longest deadline."""

RTT_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Buckets for round trips, in seconds: from one host to the far side of the globe by satellite."""

ERROR_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Buckets for the distance between prediction and measurement, in seconds, and for how long falling back to the stream takes,
which is to be 0.2 at most (ISO-FAB-018)."""

RATIO_BUCKETS = (0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
"""Buckets for measured time over predicted time, around 1."""

OTHER = "other"
"""The label of everything past a bound."""

ABORTED = "aborted"
"""The result of a request that ended before anybody said how."""

LogFormat = Literal["console", "json"]
"""For people, or one JSON object on each line."""


@dataclass(slots=True)
class RequestOutcome:
    """How one request of a client went; filled in as it goes.

    Attributes:
        feature: what was asked for.
        stream: whether it was to come in pieces.
        model: the model's id, None while no peer was found for it, so that invented names make no labels.
        result: "ok", "client_gone", the code of the error, or "aborted" where the gateway stopped or failed first.
        first_output_s: from the complete request to the first event, None where there was none.
        predicted_s: what routing expected for that, on the mesh's side.
        measured_s: what it was there.
        outputs: events that carried output.
        usage: token counts as the engine reports them.
        duration_s: from the complete request to the end of the answer.
    """

    feature: Feature
    stream: bool
    model: str | None = None
    result: str = ABORTED
    first_output_s: float | None = None
    predicted_s: float | None = None
    measured_s: float | None = None
    outputs: int = 0
    usage: Usage = field(default_factory=Usage)
    duration_s: float = 0.0


def make_logger(
    log_format: LogFormat = "console", level: str = "info", file: TextIO | None = None
) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that writes to `file`, or to standard error.

    Args:
        log_format: "console" for people, coloured on a terminal; "json" for programs.
        level: the least severe level that is written: "debug", "info", "warning" or "error".
        file: where to.
    """
    target = file if file is not None else sys.stderr
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=_plain_traceback)
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    processors.append(structlog.processors.format_exc_info if log_format == "json" else _escape_texts)
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(target),
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        context_class=dict,
        cache_logger_on_first_use=False,
    ).bind()
    return logger


def _escape_texts(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write what others chose so that it steers no terminal and begins no line of its own."""
    for name, value in event.items():
        if isinstance(value, str):  # the renderer writes all others as Python does
            event[name] = escaped(value)
    return event


def _plain_traceback(file: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    written = StringIO()
    structlog.dev.plain_traceback(written, exc_info)
    file.write(escaped(written.getvalue(), keep="\n"))


class Telemetry:
    """Takes in what happened; gives out metrics and log lines."""

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        self.log = logger
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        self._peers: set[PeerId] = set()
        self._define_request_metrics()
        self._define_mesh_metrics()

    def _define_request_metrics(self) -> None:
        registry = self.registry
        self._requests = Counter("isochrone_requests", "Requests that ended", ["model", "feature", "outcome"], registry=registry)
        self._requests_open = Gauge("isochrone_requests_open", "Requests being answered", ["feature"], registry=registry)
        self._first_output = Histogram(
            "isochrone_first_output_seconds",
            "From the complete request to the first output",
            ["feature"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._duration = Histogram(
            "isochrone_request_duration_seconds",
            "From the complete request to the end of the answer",
            ["feature"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._prediction_error = Histogram(
            "isochrone_prediction_error_seconds",
            "Absolute difference between the predicted and the measured time to the first output",
            buckets=ERROR_BUCKETS_S,
            registry=registry,
        )
        self._prediction_ratio = Histogram(
            "isochrone_prediction_ratio",
            "Measured over predicted time to the first output",
            buckets=RATIO_BUCKETS,
            registry=registry,
        )
        self._probed = Counter("isochrone_request_probes", "Peers measured for requests before they went out", registry=registry)
        self._probing = Counter("isochrone_request_probing_seconds", "How long requests waited for that", registry=registry)
        self._tokens = Counter("isochrone_tokens", "Tokens of finished answers", ["model", "direction"], registry=registry)
        self._refusals = Counter(
            "isochrone_gateway_refusals", "Requests refused before the mesh was asked", ["code"], registry=registry
        )
        self._connections = Gauge("isochrone_gateway_connections", "Open connections of clients", registry=registry)
        self._connections_cut = Counter(
            "isochrone_gateway_connections_cut", "Connections cut because the client stopped reading", registry=registry
        )

    def _define_mesh_metrics(self) -> None:
        registry = self.registry
        self._peer_states = Gauge("isochrone_peers", "Peers known", ["state"], registry=registry)
        self._peer_rtt = Gauge("isochrone_peer_rtt_seconds", "Filtered round trip to a peer", ["peer"], registry=registry)
        self._rtt = Histogram(
            "isochrone_rtt_sample_seconds", "Round trips as measured by probes", buckets=RTT_BUCKETS_S, registry=registry
        )
        self._records_accepted = Counter("isochrone_records_accepted", "Records taken in", ["kind"], registry=registry)
        self._records_refused = Counter("isochrone_records_refused", "Records refused", ["code"], registry=registry)
        self._records_stale = Counter(
            "isochrone_records_stale", "Records that were known, older than what is known, or over", ["code"], registry=registry
        )
        self._stale_told: dict[ErrorCode, int] = {}
        self._doubts = Counter("isochrone_peers_doubted", "Peers that enough others held for silent", registry=registry)
        self._disputes = Counter("isochrone_edges_disputed", "Paths of which both ends told what differs", registry=registry)
        self._refutations = Counter(
            "isochrone_refutations", "Times that others held this node for silent and it refuted", registry=registry
        )
        self._sleeps = Counter("isochrone_suspended_seconds", "How long this machine was suspended", registry=registry)
        self._links = Gauge("isochrone_links", "Connections, those in the mesh, and strangers", ["kind"], registry=registry)
        self._faults = Counter("isochrone_peer_faults", "Protocol errors of peers", ["code"], registry=registry)
        self._bans = Counter("isochrone_bans", "Peers and prefixes banned", ["of"], registry=registry)
        self._datagrams = Counter("isochrone_datagrams", "UDP datagrams", ["direction"], registry=registry)
        self._told = {"in": (0, 0), "out": (0, 0)}
        self._datagram_bytes = Counter("isochrone_datagram_bytes", "Bytes in UDP datagrams", ["direction"], registry=registry)
        self._hold = Gauge(
            "isochrone_datagram_longest_seconds",
            "Longest processor time that one received datagram took in the last ten seconds",
            registry=registry,
        )
        self._queue = Gauge("isochrone_engine_waiting", "Requests waiting for a slot here", ["model"], registry=registry)
        self._running = Gauge("isochrone_engine_running", "Requests in a slot here", ["model"], registry=registry)
        self._fallbacks = Histogram(
            "isochrone_fabric_fallback_seconds",
            "From the first sign that a fabric does not carry tensors to their first bytes on the stream",
            ["kind"],
            buckets=ERROR_BUCKETS_S,
            registry=registry,
        )
        self._coordinate_error = Gauge(
            "isochrone_coordinate_error", "This node's own estimate of its coordinate's relative error", registry=registry
        )

    def render_metrics(self) -> tuple[bytes, str]:
        """Every metric in Prometheus' text format, and the format's media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    # Requests of clients.

    def request_started(self, outcome: RequestOutcome) -> None:
        """A client's request was handed to the mesh."""
        self._requests_open.labels(outcome.feature.value).inc()

    def request_ended(self, outcome: RequestOutcome, *, is_native: bool = False) -> None:
        """Its answer ended, whichever way; for the native client only debugging logs it, since a line costs as much as a hop."""
        feature, model = outcome.feature.value, self._model_label(outcome.model)
        self._requests_open.labels(feature).dec()
        self._requests.labels(model, feature, outcome.result).inc()
        self._duration.labels(feature).observe(outcome.duration_s)
        if outcome.first_output_s is not None:
            self._first_output.labels(feature).observe(outcome.first_output_s)
        if outcome.result == "ok":
            self._tokens.labels(model, "prompt").inc(max(0, outcome.usage.prompt_tokens))
            self._tokens.labels(model, "completion").inc(max(0, outcome.usage.completion_tokens))
            if outcome.predicted_s is not None and outcome.measured_s is not None:
                self._prediction_error.observe(abs(outcome.measured_s - outcome.predicted_s))
                if outcome.predicted_s > 0:
                    self._prediction_ratio.observe(outcome.measured_s / outcome.predicted_s)
        log = self.log.debug if is_native else self.log.info
        log(
            "request ended",
            model=outcome.model,
            feature=feature,
            outcome=outcome.result,
            duration_ms=round(outcome.duration_s * 1000, 1),
        )

    def request_refused(self, code: str) -> None:
        """A client's request was refused before the mesh was asked; `code` is one of the gateway's own."""
        self._refusals.labels(code).inc()

    def request_probed(self, peers: int, took_s: float) -> None:
        """A request waited `took_s` before it went out, while so many peers were measured for it."""
        self._probed.inc(peers)
        self._probing.inc(took_s)

    def client_connected(self) -> None:
        """A client opened a connection to the gateway."""
        self._connections.inc()

    def client_disconnected(self) -> None:
        """A client's connection is closed."""
        self._connections.dec()

    def client_cut(self) -> None:
        """A client's connection was cut because it does not read."""
        self._connections_cut.inc()
        self.log.warning("client cut", reason="it stopped reading its answer")

    def gateway_failed(self, message: str) -> None:
        """A handler raised what it should not have; called while that exception is handled."""
        self.log.error("gateway failed", detail=message, exc_info=sys.exc_info()[1])

    # The mesh.

    def peers_counted(self, states: Mapping[str, int]) -> None:
        """How many peers are in each state now; a state that is left out has none."""
        self._peer_states.clear()
        for state, count in states.items():
            self._peer_states.labels(state).set(count)

    def peer_connected(self, peer_id: PeerId) -> None:
        """A connection to a peer is up."""
        self.log.info("peer connected", peer=peer_id_text(peer_id))

    def peer_disconnected(self, peer_id: PeerId, code: ErrorCode) -> None:
        """A connection to a peer is gone, and with it the round trip that is measured over it."""
        self.log.info("peer disconnected", peer=peer_id_text(peer_id), code=code.name.lower())
        self._drop_gauge(peer_id)

    def peer_state_changed(self, peer_id: PeerId, state: Literal["alive", "suspected", "left", "gone"], reason: str = "") -> None:
        """A peer is alive, does not answer, may not be given work any more, or is held for dead."""
        because = {"reason": reason} if reason else {}
        self.log.info("peer state", peer=peer_id_text(peer_id), state=state, **because)
        if state == "gone":
            self._drop_gauge(peer_id)

    def peer_forgotten(self, peer_id: PeerId) -> None:
        """A peer has been gone for so long that nothing is known of it any more."""
        self.log.info("peer forgotten", peer=peer_id_text(peer_id))
        self._drop_gauge(peer_id)

    def peer_doubted(self, key: bytes) -> None:
        """Enough others hold the peer whose card has this key for silent."""
        self._doubts.inc()
        self.log.debug("peer doubted", key=key.hex())

    def edge_disputed(self, one: PeerId, other: PeerId, rtt_s_of_one: float, rtt_s_of_other: float) -> None:
        """Two peers tell of the path between them what cannot both be true."""
        self._disputes.inc()
        ends = {"one": peer_id_text(one), "other": peer_id_text(other)}
        self.log.debug("edge disputed", **ends, one_ms=rtt_s_of_one * 1000.0, other_ms=rtt_s_of_other * 1000.0)

    def refuted(self) -> None:
        """Others held this node for silent, and it told them otherwise."""
        self._refutations.inc()
        self.log.warning(
            "others held this node for silent; its network or this machine is overloaded, or was cut off for a moment"
        )

    def link_changed(self, peer_id: PeerId, *, in_mesh: bool) -> None:
        """News is pushed over the link to a peer from now on, or no more."""
        self.log.debug("link grafted" if in_mesh else "link pruned", peer=peer_id_text(peer_id))

    def links_counted(self, connected: int, in_mesh: int, strangers: int) -> None:
        """How many peers are connected now, over how many links news is pushed, and how many strangers are served."""
        self._links.labels("connected").set(connected)
        self._links.labels("mesh").set(in_mesh)
        self._links.labels("strangers").set(strangers)

    def slept(self, slept_s: float) -> None:
        """This machine was suspended and goes on."""
        self._sleeps.inc(slept_s)
        self.log.warning("the machine was suspended; peers are asked whether they are still there", slept_s=round(slept_s, 1))

    def peer_faulted(self, peer_id: PeerId | None, code: ErrorCode, detail: str) -> None:
        """A peer broke the protocol."""
        self._faults.labels(code.name.lower()).inc()
        self.log.warning(
            "peer fault", peer=None if peer_id is None else peer_id_text(peer_id), code=code.name.lower(), detail=detail
        )

    def peer_banned(self, peer_id: PeerId, code: ErrorCode, ban_s: float) -> None:
        """A peer is turned away for a while."""
        self._bans.labels("peer").inc()
        self.log.warning("peer banned", peer=peer_id_text(peer_id), code=code.name.lower(), ban_s=ban_s)

    def prefix_banned(self, prefix: str, ban_s: float) -> None:
        """Strangers from a prefix are turned away for a while."""
        self._bans.labels("prefix").inc()
        self.log.warning("prefix banned", prefix=prefix, ban_s=ban_s)

    def ban_expired(self, peer_id: PeerId | None, prefix: str | None) -> None:
        """A peer or prefix may come again."""
        self.log.info("ban is over", peer=None if peer_id is None else peer_id_text(peer_id), prefix=prefix)

    def sample_taken(self, peer_id: PeerId, rtt_s: float, filtered_s: float) -> None:
        """A probe came back after `rtt_s`; the filter now says `filtered_s`."""
        self._rtt.observe(rtt_s)
        if peer_id in self._peers or len(self._peers) < PEERS_MAX:
            self._peers.add(peer_id)
            self._peer_rtt.labels(peer_id_text(peer_id)).set(filtered_s)

    def coordinate_moved(self, error: float) -> None:
        """This node's coordinate moved; `error` is its relative error as it estimates it."""
        self._coordinate_error.set(error)

    def record_accepted(self, kind: RecordKind) -> None:
        """A record was verified and is newer than what was known."""
        self._records_accepted.labels(kind.value).inc()

    def record_refused(self, code: ErrorCode) -> None:
        """A record did not verify."""
        self._records_refused.labels(code.name.lower()).inc()

    def stale_counted(self, counts: Mapping[ErrorCode, int]) -> None:
        """How many records were no news since the start, by why."""
        for code, count in counts.items():
            self._records_stale.labels(code.name.lower()).inc(max(0, count - self._stale_told.get(code, 0)))
            self._stale_told[code] = count

    def datagrams_counted(self, direction: Literal["in", "out"], datagrams: int, size_bytes: int) -> None:
        """How many UDP datagrams, with how many bytes, went which way since the start; less than before counts as nothing new."""
        told_datagrams, told_bytes = self._told[direction]
        self._datagrams.labels(direction).inc(max(0, datagrams - told_datagrams))
        self._datagram_bytes.labels(direction).inc(max(0, size_bytes - told_bytes))
        self._told[direction] = datagrams, size_bytes

    def tell_holds(self, longest_s: Callable[[], float]) -> None:
        """Where to look, whenever somebody asks, for the longest time that one datagram took."""
        self._hold.set_function(longest_s)

    def engine_crashed(self, model: str, error: Exception) -> None:
        """An engine raised what it should not have while it answered."""
        self.log.error("engine crashed", model=model, exc_info=error)

    def handler_crashed(self, protocol_id: str, error: Exception) -> None:
        """What serves a protocol raised what it should not have; that ended its stream and nothing else."""
        self.log.error("handler crashed", protocol=protocol_id, exc_info=error)

    def fabric_fell_back(self, kind: Kind, took_s: float) -> None:
        """The bytes of a transfer leave by the stream, `took_s` after the first sign that its fabric does not carry them."""
        self._fallbacks.labels(kind.name.lower()).observe(took_s)

    def load_measured(self, load: ModelLoad) -> None:
        """What one of this node's own models is doing now."""
        model = self._model_label(load.model)
        self._queue.labels(model).set(load.waiting)
        self._running.labels(model).set(load.running)

    def _drop_gauge(self, peer_id: PeerId) -> None:
        if peer_id in self._peers:
            self._peers.discard(peer_id)
            self._peer_rtt.remove(peer_id_text(peer_id))

    def _model_label(self, model: str | None) -> str:
        if model is None:
            return ""
        if model not in self._models:
            if len(self._models) >= MODELS_MAX:
                return OTHER
            self._models.add(model)
        return escaped(model)
