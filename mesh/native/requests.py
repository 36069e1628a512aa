"""Requests of a program in the mesh's own form.

Spec: docs/spec/06-inference.md, section "Request".
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mesh.native.errors import BadInputError
from mesh.native.tensors import to_tensors
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.inference import REQUEST_ID_BYTES, Feature, InferenceRequest, are_on_host, on_host
from protocol.wire.inference import frame_request

DEADLINE_S = 60.0
"""How long an answer may take in seconds unless the program says otherwise: as long as at the gateway."""


def tensor_request(
    model: str, tensors: Mapping[str, object], body: bytes, *, deadline_s: float, memory_bytes: int, receipt: bool
) -> InferenceRequest:
    """Ask for tensors.

    Raises:
        BadInputError: an input cannot be sent.
    """
    identity = os.urandom(REQUEST_ID_BYTES)
    inputs = to_tensors(tensors)
    request = InferenceRequest(
        identity, Feature.TENSORS, model, body, inputs, deadline_s, memory_bytes=memory_bytes, receipt=receipt
    )
    # Who hands over arrays on a device is given such back where they come so.
    return request if are_on_host(inputs) else replace(request, takes_device=not receipt)


def brought(request: InferenceRequest) -> InferenceRequest:
    """A request whose inputs are copied to the host, where they lie on a device.

    Raises:
        BadInputError: the device fails.
    """
    if are_on_host(request.tensors):
        return request
    try:
        return replace(request, tensors=on_host(request.tensors))
    except OSError as error:
        raise BadInputError(ErrorCode.MALFORMED, f"an input cannot be read from its device: {error}") from error


def text_request(
    model: str,
    messages: Sequence[Mapping[str, object]] | None,
    prompt: str | None,
    options: Mapping[str, object],
    *,
    deadline_s: float,
    memory_bytes: int,
    receipt: bool,
) -> InferenceRequest:
    """Ask for text, which comes as it is made.

    Raises:
        BadInputError: there are messages and a prompt, or neither, or they are no JSON.
    """
    if (messages is None) == (prompt is None):
        raise BadInputError(ErrorCode.MALFORMED, "pass messages=[{'role': 'user', 'content': …}] or prompt='…', one of the two")
    asked: dict[str, object] = {"prompt": prompt} if messages is None else {"messages": list(messages)}
    wished = options.get("max_completion_tokens", options.get("max_tokens", 0))
    return InferenceRequest(
        os.urandom(REQUEST_ID_BYTES),
        Feature.COMPLETIONS if messages is None else Feature.CHAT,
        model,
        _json({"model": model, **asked, **options}),
        deadline_s=deadline_s,
        stream=True,
        memory_bytes=memory_bytes,
        output_tokens=wished if isinstance(wished, int) and wished > 0 else 0,
        receipt=receipt,
    )


def embedding_request(
    model: str, inputs: str | Sequence[str], options: Mapping[str, object], *, deadline_s: float
) -> InferenceRequest:
    """Ask for embeddings.

    Raises:
        BadInputError: they are no JSON.
    """
    body = _json({"model": model, "input": inputs if isinstance(inputs, str) else list(inputs), **options})
    return InferenceRequest(os.urandom(REQUEST_ID_BYTES), Feature.EMBEDDINGS, model, body, deadline_s=deadline_s)


def pieces_of(request: InferenceRequest) -> list[bytes | memoryview]:
    """A request as a frame in pieces.

    Raises:
        BadInputError: something in it is out of its range or over a limit.
    """
    try:
        return frame_request(brought(request))
    except LocalProtocolError as error:
        raise BadInputError(error.code, f"{error.detail}; the bounds stand in docs/spec/06-inference.md") from error


def _json(body: object) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(ErrorCode.MALFORMED, f"what was passed is no JSON ({error})") from error
