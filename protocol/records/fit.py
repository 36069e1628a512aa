"""Cutting a payload down to what fits its record: a node with very many models still tells of the most useful ones."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.records.config import DEFAULT_RECORD_CONFIG, RecordConfig
from protocol.records.mapping import encode_payload, kind_of
from protocol.records.measured import EDGE_BYTES
from protocol.records.values import Card, Edges, Payload, Verdict

_Item = TypeVar("_Item")
_P = TypeVar("_P", Card, Edges, Verdict)


def fit(payload: Payload, config: RecordConfig = DEFAULT_RECORD_CONFIG) -> Payload:
    """Leave out what does not fit: the last models, the longest paths, the last accusations.

    Args:
        payload: a payload whose parts are each within their range.
        config: the bounds.

    Returns:
        The same payload where it fits; else one with fewer models, edges or accusations.

    Raises:
        LocalProtocolError: TOO_LARGE or MALFORMED when even an empty list does not help.
    """
    match payload:
        case Card():
            card = replace(payload, addresses=payload.addresses[: config.addresses_max])
            models = payload.models[: config.models_max]
            return _longest(models, lambda kept: replace(card, models=tuple(kept)), config)
        case Edges():
            payload = replace(payload, measured=payload.measured[: EDGE_BYTES * config.measured_max])
            if len(payload.edges) <= config.edges_max and _packs(payload, config):
                return payload
            nearest = sorted(payload.edges, key=lambda edge: edge.rtt_s)[: config.edges_max]
            return _longest(nearest, lambda kept: replace(payload, edges=tuple(kept)), config)
        case Verdict():
            if len(payload.accused) <= config.accused_max and _packs(payload, config):
                return payload
            return _longest(payload.accused[: config.accused_max], lambda kept: replace(payload, accused=tuple(kept)), config)


def _longest(items: Sequence[_Item], build: Callable[[Sequence[_Item]], _P], config: RecordConfig) -> _P:
    """The payload of the longest beginning of `items` that packs."""
    cut = bisect_left(range(1, len(items) + 1), x=True, key=lambda count: not _packs(build(items[:count]), config))
    payload = build(items[:cut])
    if not _packs(payload, config):
        raise LocalProtocolError(ErrorCode.TOO_LARGE, "what cannot be left out of the record is too long")
    return payload


def _packs(payload: Payload, config: RecordConfig) -> bool:
    try:
        packed = encode_payload(payload, config)
    except LocalProtocolError as error:
        if error.code is not ErrorCode.TOO_LARGE:
            raise
        return False
    return len(packed) <= config.payload_bytes_sure_of(kind_of(payload))
