"""Beats as they travel: msgpack arrays of small integers, for a beat goes to dozens of peers every few seconds.

A beat is `[draining, loads, bus]`, each load `[model, running, waiting, slots, queue, service, tokens]`: times in units of 100 us
and tokens in tenths a second, so that most of these numbers take one to three bytes. The bus is left out where it is not known.
Elements after the known ones are ignored.

Spec: docs/spec/04-gossip.md, section "Neighbours".
"""

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.load import Beat, ModelLoad
from protocol.records import COUNT_MAX, DEFAULT_RECORD_CONFIG, SIZE_MAX
from protocol.wire import PackingLimits, Plain, pack, unpack

BEAT_BYTES_MAX = 1024
"""Longest beat in bytes: it holds 20 to 40 models, more than a node serves at once."""

LOADS_MAX = 64
"""Most loads of a beat, a count: as many as a card has models."""

_TIME_UNITS_PER_S = 10_000  # of queue and service times: 100 us, a twentieth of the shortest request
_TOKEN_UNITS = 10  # of tokens per second: tenths tell the slowest engines apart
_WAIT_MAX = 86_400 * _TIME_UNITS_PER_S  # longest queue or service time, in units of time: a day
_TOKENS_MAX = 1_000_000_000 * _TOKEN_UNITS  # highest token rate, in units of tokens per second: beyond any engine
_LOAD_FIELDS = 7  # elements of a load

_LIMITS = PackingLimits(size_bytes_max=BEAT_BYTES_MAX, depth_max=4, values_max=1024)


def encode_beat(beat: Beat) -> bytes:
    """Encode a beat, rounded to the units; the idlest models are left out where not all have room.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when a single load does not pack.
    """
    loads = beat.loads
    if len(loads) > LOADS_MAX:
        loads = _busiest(loads, LOADS_MAX)
    while True:
        try:
            bus = [beat.bus_free_mbps] if beat.bus_free_mbps else []
            return pack([beat.draining, [_load_to_plain(load) for load in loads], *bus], _LIMITS)
        except LocalProtocolError as error:
            if error.code is not ErrorCode.TOO_LARGE or len(loads) <= 1:
                raise
        loads = _busiest(loads, len(loads) - 1)


def decode_beat(packed: bytes) -> Beat:
    """Decode a beat from a peer.

    Raises:
        RemoteProtocolError: TOO_LARGE for a size, count or length over its limit, MALFORMED for any other fault.
    """
    value = unpack(packed, _LIMITS)
    if not isinstance(value, list) or len(value) < 2:
        raise _malformed("a beat that is no array of two")
    draining, loads = value[:2]
    if not isinstance(draining, bool) or not isinstance(loads, list):
        raise _malformed("a beat without draining and loads")
    if len(loads) > LOADS_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a beat of {len(loads)} loads")
    return Beat(draining, tuple([_load_from_plain(load) for load in loads]), _bus_from_plain(value[2:3]))


def _busiest(loads: tuple[ModelLoad, ...], count: int) -> tuple[ModelLoad, ...]:
    return tuple(sorted(loads, key=lambda load: -(load.running + load.waiting))[:count])


def _load_to_plain(load: ModelLoad) -> list[object]:
    return [
        load.model,
        load.running,
        load.waiting,
        load.slots,
        _units(load.queue_s, _TIME_UNITS_PER_S),
        _units(load.service_s, _TIME_UNITS_PER_S),
        _units(load.tokens_per_s, _TOKEN_UNITS),
    ]


def _units(number: float, per_one: int) -> int:
    """Rounded to whole units; what is more than nothing stays so, for nothing means that it is not known."""
    return max(1, round(number * per_one)) if number > 0.0 else 0


def _load_from_plain(value: Plain) -> ModelLoad:
    if not isinstance(value, list) or len(value) < _LOAD_FIELDS:
        raise _malformed(f"a load that is no array of {_LOAD_FIELDS}")
    model, running, waiting, slots, queue, service, tokens = value[:_LOAD_FIELDS]
    if not isinstance(model, str) or not model:
        raise _malformed("a load without a model")
    if len(model.encode()) > DEFAULT_RECORD_CONFIG.name_bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, "a model's name that is too long")
    return ModelLoad(
        model=model,
        running=_count(running, COUNT_MAX),
        waiting=_count(waiting, COUNT_MAX),
        slots=_count(slots, COUNT_MAX),
        queue_s=_count(queue, _WAIT_MAX) / _TIME_UNITS_PER_S,
        service_s=_count(service, _WAIT_MAX) / _TIME_UNITS_PER_S,
        tokens_per_s=_count(tokens, _TOKENS_MAX) / _TOKEN_UNITS,
    )


def _bus_from_plain(elements: list[Plain]) -> int:
    """What is left of a bus; what is no such number says nothing, as if it were not there."""
    match elements:
        case [int(mbps)] if not isinstance(mbps, bool) and 0 <= mbps <= SIZE_MAX:
            return mbps
        case _:
            return 0


def _count(value: Plain, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise _malformed(f"a number of a load that is no integer from 0 to {largest}")
    return value


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)
