"""Inference over a stream: the side that asks and the side that answers."""

from mesh.inference.client import Answer, AnswerLimits, request_over
from mesh.inference.server import Served, ServeLimits, serve_stream

__all__ = ["Answer", "AnswerLimits", "ServeLimits", "Served", "request_over", "serve_stream"]
