"""Watching one connection: its frames decoded, as JSON, as lines for people and as a qlog file."""

from mesh.trace.tracer import Trace, TraceRefusedError, trace_peer

__all__ = ["Trace", "TraceRefusedError", "trace_peer"]
