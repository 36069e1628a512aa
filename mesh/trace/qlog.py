"""A trace as a qlog file, for tools that draw QUIC connections.

The file is a JSON text sequence (RFC 7464): a header, then one record an event. What moved between the program and QUIC is told
in qlog's own words (`quic:stream_data_moved`, `quic:datagram_data_moved`), what the frames say as events of a schema of our own.
Packets are not in it: the trace begins in the middle of a connection, and the faster QUIC engine keeps them to itself.

Source: draft-ietf-quic-qlog-main-schema and draft-ietf-quic-qlog-quic-events, as of July 2026.
Spec: docs/trace.md, section "Qlog".
"""

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from protocol.errors import RemoteProtocolError
from protocol.multiaddr import parse_multiaddr

_RECORD_SEPARATOR = "\x1e"
"""Begins each record (RFC 7464 section 2.2)."""

_EVENT_SCHEMAS = ["urn:ietf:params:qlog:events:quic", "urn:isochrone:qlog:frames"]


class QlogWriter:
    """Writes the events of one trace."""

    def __init__(self, file: IO[str], peer: str, wall_s: float) -> None:
        """Write nothing yet: the header says who dialled, which the first event tells.

        Args:
            file: where to write; closing it is the caller's part.
            peer: the peer id or what named it.
            wall_s: when the trace began, in seconds since 1970.
        """
        self._file = file
        self._peer = peer
        self._started_ms = wall_s * 1000
        self._begun = False

    def _begin(self, first: Mapping[str, Any]) -> None:
        vantage = "unknown" if first.get("what") != "connected" else "client" if first.get("sent") else "server"
        self._write(
            {
                "file_schema": "urn:ietf:params:qlog:file:sequential",
                "serialization_format": "application/qlog+json-seq",
                "title": f"isochrone trace {self._peer}",
                "trace": {
                    "common_fields": {
                        "time_format": "relative_to_epoch",
                        "reference_time": {"clock_type": "system", "epoch": "1970-01-01T00:00:00.000Z"},
                    },
                    "vantage_point": {"name": "isochrone", "type": vantage},
                    "event_schemas": _EVENT_SCHEMAS,
                },
            }
        )

    def add(self, event: Mapping[str, Any]) -> None:
        """Write one event of `Trace`, as one record or more."""
        if not self._begun:
            self._begin(event)
            self._begun = True
        time_ms = self._started_ms + float(event.get("t_s", 0.0)) * 1000
        for name, data in _records(event):
            self._write({"time": round(time_ms, 3), "name": name, "data": data})

    def _write(self, value: object) -> None:
        self._file.write(f"{_RECORD_SEPARATOR}{json.dumps(value, separators=(',', ':'))}\n")


def _records(event: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    sent = bool(event.get("sent"))
    way = {"from": "application", "to": "transport"} if sent else {"from": "transport", "to": "application"}
    stream = {"stream_id": event["stream"]} if "stream" in event else {}
    match event.get("what"):
        case "connected":
            yield "quic:connection_started", {"local": {}, "remote": _endpoint(str(event.get("remote", "")))}
        case "closed":
            reason = f"{event.get('code')}: {event.get('reason')}"
            yield "quic:connection_closed", {"application_error": "unknown", "reason": reason}
        case "frame":
            yield "quic:stream_data_moved", {**stream, **way, "raw": {"length": event.get("bytes", 0)}}
            yield "isochrone:frame", {**stream, "sent": sent, "protocol": event.get("protocol"), "frame": event.get("frame")}
        case "datagram":
            yield "quic:datagram_data_moved", {**way, "raw": {"length": event.get("bytes", 0)}}
            yield "isochrone:datagram", {"sent": sent, "frame": event.get("frame")}
        case "ended":
            yield "quic:stream_data_moved", {**stream, **way, "additional_info": "fin_set"}
        case "reset":
            yield "quic:stream_data_moved", {**stream, **way, "additional_info": "stream_reset"}
        case what:
            rest = {key: value for key, value in event.items() if key not in ("what", "t_s")}
            yield f"isochrone:{what}", rest


def _endpoint(address: str) -> dict[str, Any]:
    """A multiaddr as qlog writes the end of a path; empty for a name."""
    try:
        multiaddr = parse_multiaddr(address)
    except RemoteProtocolError:
        return {}
    family = {"ip4": "v4", "ip6": "v6"}.get(multiaddr.protocol)
    return {} if family is None else {f"ip_{family}": multiaddr.host, f"port_{family}": multiaddr.port}
