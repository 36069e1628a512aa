"""Requests sealed to who answers them, and their answers, for the way through a peer that is to read neither."""

from protocol.sealing.answer import AnswerOpener, AnswerSealer
from protocol.sealing.frames import (
    ANSWER_FRAME_BYTES_MAX,
    ANSWER_NONCE_BYTES,
    CHUNK_CONTENT_BYTES_MAX,
    HEADER_BYTES_MAX,
    PAD_BYTES,
    RELAY_PROTOCOL,
    SEALED_BYTES_MAX,
    SEALED_PROTOCOL,
    AnswerFrame,
    Begun,
    Chunk,
    Header,
    Refused,
    decode_answer_frame,
    decode_header,
    encode_answer_frame,
    encode_header,
)
from protocol.sealing.request import Route, open_request, seal_request

__all__ = [
    "ANSWER_FRAME_BYTES_MAX",
    "ANSWER_NONCE_BYTES",
    "CHUNK_CONTENT_BYTES_MAX",
    "HEADER_BYTES_MAX",
    "PAD_BYTES",
    "RELAY_PROTOCOL",
    "SEALED_BYTES_MAX",
    "SEALED_PROTOCOL",
    "AnswerFrame",
    "AnswerOpener",
    "AnswerSealer",
    "Begun",
    "Chunk",
    "Header",
    "Refused",
    "Route",
    "decode_answer_frame",
    "decode_header",
    "encode_answer_frame",
    "encode_header",
    "open_request",
    "seal_request",
]
