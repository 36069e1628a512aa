"""Inference over a stream: the side that asks and the side that answers."""

from mesh.inference.client import Answer, AnswerLimits, request_over
from mesh.inference.server import Rest, Served, ServeLimits, begin_stream, serve_stream

__all__ = ["Answer", "AnswerLimits", "Rest", "ServeLimits", "Served", "begin_stream", "request_over", "serve_stream"]
