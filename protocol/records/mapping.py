"""Payloads to msgpack and back, with every range checked.

Values that may grow (card, hardware, GPU, interface, model offer, edges, verdict) are maps: fields that this version does not
know are kept in `extra`. Values that are many and small (coordinate, edge, accusation) are arrays in a fixed order: elements
after the known ones are ignored. Decoding lets nothing in that could spoil arithmetic later: no NaN, no infinity, no negative
time.

Spec: docs/spec/03-records.md, section "Payloads".
"""

from collections.abc import Mapping, Sequence

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import SEALING_KEY_BYTES, peer_id_from_bytes
from protocol.inference import Feature
from protocol.multiaddr import MULTIADDR_BYTES_MAX, Multiaddr
from protocol.records.config import COUNT_MAX, DIGEST_BYTES, SAMPLES_MAX, SEQUENCE_MAX, SIZE_MAX, SUBJECT_BYTES, RecordConfig
from protocol.records.measured import EDGE_BYTES, check_measured
from protocol.records.values import (
    Accusation,
    Card,
    Edge,
    Edges,
    Gpu,
    Hardware,
    ModelOffer,
    Nic,
    Payload,
    RecordKind,
    Verdict,
)
from protocol.wire import Plain, pack, unpack

_FEATURES = {feature.value: feature for feature in Feature}


def kind_of(payload: Payload) -> RecordKind:
    """The kind of record that carries `payload`."""
    match payload:
        case Card():
            return RecordKind.CARD
        case Edges():
            return RecordKind.EDGES
        case Verdict():
            return RecordKind.VERDICT


def encode_payload(payload: Payload, config: RecordConfig) -> bytes:
    """Encode a payload as msgpack.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when it does not pack. Ranges are not checked here: `decode_payload` does.
    """
    match payload:
        case Card():
            value = _card_to_plain(payload)
        case Edges():
            value = {
                **payload.extra,
                "edges": [_edge_to_plain(edge) for edge in payload.edges],
                **({"measured": payload.measured} if payload.measured else {}),
            }
        case Verdict():
            value = {**payload.extra, "accused": [[item.subject, item.incarnation] for item in payload.accused]}
    return pack(value, config.payload_limits(kind_of(payload)))


def decode_payload(kind: RecordKind, packed: bytes, config: RecordConfig) -> Payload:
    """Decode the payload of a record whose signature has been verified.

    Raises:
        RemoteProtocolError: TOO_LARGE for a size, count or length over its limit, MALFORMED for any other fault.
    """
    fields = _Fields(unpack(packed, config.payload_limits(kind)), kind.value, config)
    match kind:
        case RecordKind.CARD:
            return _card_from_plain(fields, config)
        case RecordKind.EDGES:
            edges = tuple(_edge_from_plain(item, config) for item in fields.items("edges", config.edges_max))
            return Edges(edges=edges, measured=_measured_from_plain(fields.perhaps("measured"), config), extra=fields.rest())
        case RecordKind.VERDICT:
            accused = tuple(_accusation_from_plain(item) for item in fields.items("accused", config.accused_max))
            return Verdict(accused=accused, extra=fields.rest())


def _card_to_plain(card: Card) -> dict[str, object]:
    hardware = card.hardware
    return {
        **card.extra,
        "addresses": [address.to_bytes() for address in card.addresses],
        "hardware": {
            **hardware.extra,
            "cpu_model": hardware.cpu_model,
            "cpu_count": hardware.cpu_count,
            "memory_bytes": hardware.memory_bytes,
            "numa_nodes": hardware.numa_nodes,
            "gpus": [
                {**gpu.extra, "name": gpu.name, "memory_bytes": gpu.memory_bytes, **_bus_to_plain(gpu)} for gpu in hardware.gpus
            ],
            "nics": [
                {**nic.extra, "name": nic.name, "speed_mbps": nic.speed_mbps, "mtu_bytes": nic.mtu_bytes, **_bus_to_plain(nic)}
                for nic in hardware.nics
            ],
        },
        "models": [
            {
                **offer.extra,
                "model": offer.model,
                "features": sorted(feature.value for feature in offer.features),
                "context_length": offer.context_length,
                "precision": offer.precision,
                "memory_bytes": offer.memory_bytes,
                "engine": offer.engine,
                **({"digest": offer.digest} if offer.digest else {}),
            }
            for offer in card.models
        ],
        "coordinate": None if card.coordinate is None else _coordinate_to_plain(card.coordinate),
        "agent": card.agent,
        **({"incarnation": card.incarnation} if card.incarnation else {}),
        **({"membership": card.membership} if card.membership else {}),
        **({"seal_key": card.seal_key} if card.seal_key else {}),
        **({"relays": True} if card.relays else {}),
        **({"fabric": card.fabric} if card.fabric else {}),
    }


def _bus_to_plain(device: Gpu | Nic) -> dict[str, object]:
    """Where a device is on the buses, as far as it is known."""
    return {
        **({"bus_mbps": device.bus_mbps} if device.bus_mbps else {}),
        **({} if device.numa_node is None else {"numa_node": device.numa_node}),
    }


def _card_from_plain(fields: "_Fields", config: RecordConfig) -> Card:
    addresses = [_address_from_plain(item) for item in fields.items("addresses", config.addresses_max)]
    coordinate = fields.take("coordinate")
    return Card(
        addresses=tuple(address for address in addresses if address is not None),
        hardware=_hardware_from_plain(fields.take("hardware"), config),
        models=tuple(_offer_from_plain(item, config) for item in fields.items("models", config.models_max)),
        coordinate=None if coordinate is None else _coordinate_from_plain(coordinate, config),
        agent=fields.text("agent"),
        incarnation=_integer(fields.perhaps("incarnation") or 0, "card.incarnation", SEQUENCE_MAX),
        membership=_bytes(fields.perhaps("membership"), "card.membership", config.membership_bytes_max),
        seal_key=fields.key("seal_key", SEALING_KEY_BYTES),
        relays=fields.flag("relays"),
        fabric=_bytes(fields.perhaps("fabric"), "card.fabric", config.fabric_bytes_max),
        extra=fields.rest(),
    )


def _address_from_plain(value: Plain) -> Multiaddr | None:
    """An address, or None for one of a form that only later versions can dial: it must not cost the whole card."""
    if not isinstance(value, bytes):
        raise _malformed("an address that is not bytes")
    if len(value) > MULTIADDR_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"an address of {len(value)} bytes")
    try:
        return Multiaddr.from_bytes(value)
    except RemoteProtocolError:
        return None


def _hardware_from_plain(value: Plain, config: RecordConfig) -> Hardware:
    fields = _Fields(value, "hardware", config)
    return Hardware(
        cpu_model=fields.text("cpu_model"),
        cpu_count=fields.integer("cpu_count", COUNT_MAX),
        memory_bytes=fields.integer("memory_bytes", SIZE_MAX),
        numa_nodes=fields.integer("numa_nodes", COUNT_MAX),
        gpus=tuple(_gpu_from_plain(item, config) for item in fields.items("gpus", config.gpus_max)),
        nics=tuple(_nic_from_plain(item, config) for item in fields.items("nics", config.nics_max)),
        extra=fields.rest(),
    )


def _gpu_from_plain(value: Plain, config: RecordConfig) -> Gpu:
    fields = _Fields(value, "gpu", config)
    return Gpu(
        name=fields.text("name"),
        memory_bytes=fields.integer("memory_bytes", SIZE_MAX),
        bus_mbps=fields.perhaps_integer("bus_mbps", SIZE_MAX) or 0,
        numa_node=fields.perhaps_integer("numa_node", COUNT_MAX),
        extra=fields.rest(),
    )


def _nic_from_plain(value: Plain, config: RecordConfig) -> Nic:
    fields = _Fields(value, "nic", config)
    return Nic(
        name=fields.text("name"),
        speed_mbps=fields.integer("speed_mbps", SIZE_MAX),
        mtu_bytes=fields.integer("mtu_bytes", SIZE_MAX),
        bus_mbps=fields.perhaps_integer("bus_mbps", SIZE_MAX) or 0,
        numa_node=fields.perhaps_integer("numa_node", COUNT_MAX),
        extra=fields.rest(),
    )


def _offer_from_plain(value: Plain, config: RecordConfig) -> ModelOffer:
    fields = _Fields(value, "model", config)
    features: set[Feature] = set()
    for item in fields.items("features", config.features_max):
        name = _text(item, "a feature", config.name_bytes_max)
        # a feature of a later version says nothing to this one
        if name in _FEATURES:
            features.add(_FEATURES[name])
    model = fields.text("model")
    if not model:
        raise _malformed("a model without a name")
    return ModelOffer(
        model=model,
        features=frozenset(features),
        context_length=fields.integer("context_length", SIZE_MAX),
        precision=fields.text("precision"),
        memory_bytes=fields.integer("memory_bytes", SIZE_MAX),
        engine=fields.text("engine"),
        digest=fields.key("digest", DIGEST_BYTES),
        extra=fields.rest(),
    )


def _coordinate_to_plain(coordinate: Coordinate) -> list[object]:
    return [[float(component) for component in coordinate.vector], float(coordinate.height_s), float(coordinate.error)]


def _coordinate_from_plain(value: Plain, config: RecordConfig) -> Coordinate:
    vector, height_s, error = _elements(value, 3, "a coordinate")
    if not isinstance(vector, list) or len(vector) != DIMENSIONS:
        raise _malformed(f"a coordinate without exactly {DIMENSIONS} components")
    return Coordinate(
        vector=tuple(_number(item, "a component", -config.rtt_s_max, config.rtt_s_max) for item in vector),
        height_s=_number(height_s, "a height", 0.0, config.rtt_s_max),
        error=_number(error, "a coordinate's error", 0.0, config.error_max),
    )


def _edge_to_plain(edge: Edge) -> list[object]:
    return [edge.peer_id, float(edge.rtt_s), float(edge.jitter_s), min(edge.samples, SAMPLES_MAX)]


def _edge_from_plain(value: Plain, config: RecordConfig) -> Edge:
    peer, rtt_s, jitter_s, samples = _elements(value, 4, "an edge")
    if not isinstance(peer, bytes):
        raise _malformed("an edge to something that is no peer id")
    return Edge(
        peer_id=peer_id_from_bytes(peer),
        rtt_s=_number(rtt_s, "rtt_s", 0.0, config.rtt_s_max),
        jitter_s=_number(jitter_s, "jitter_s", 0.0, config.rtt_s_max),
        samples=_integer(samples, "samples", SAMPLES_MAX),
    )


def _measured_from_plain(value: Plain, config: RecordConfig) -> bytes:
    measured = _bytes(value, "edges.measured", EDGE_BYTES * config.measured_max)
    check_measured(measured, config.measured_max)
    return measured


def _accusation_from_plain(value: Plain) -> Accusation:
    subject, incarnation = _elements(value, 2, "an accusation")
    if not isinstance(subject, bytes) or len(subject) != SUBJECT_BYTES:
        raise _malformed("an accusation of nobody")
    return Accusation(subject, _integer(incarnation, "an incarnation", SEQUENCE_MAX))


class _Fields:
    """A map from which known fields are taken one by one; what is left over belongs to later versions."""

    def __init__(self, value: Plain, what: str, config: RecordConfig) -> None:
        if not isinstance(value, dict):
            raise _malformed(f"{what} is no map")
        self._left = dict(value)
        self._what = what
        self._config = config

    def take(self, name: str) -> Plain:
        """The field's value, which may be nil; the field itself is required."""
        if name not in self._left:
            raise _malformed(f"{self._what} lacks {name}")
        return self._left.pop(name)

    def perhaps(self, name: str) -> Plain:
        """The value of a field that may be missing; nil then."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        """A text of at most `name_bytes_max` bytes."""
        return _text(self.take(name), f"{self._what}.{name}", self._config.name_bytes_max)

    def flag(self, name: str) -> bool:
        """A boolean, False where the field is missing."""
        value = self.perhaps(name)
        if value is not None and not isinstance(value, bool):
            raise _malformed(f"{self._what}.{name} is no boolean")
        return bool(value)

    def key(self, name: str, length: int) -> bytes:
        """Exactly `length` bytes, or none where the field is missing or empty."""
        value = self.perhaps(name)
        if value is None or value == b"":
            return b""
        if not isinstance(value, bytes) or len(value) != length:
            raise _malformed(f"{self._what}.{name} is no {length} bytes")
        return value

    def integer(self, name: str, largest: int) -> int:
        """An integer from 0 to `largest`."""
        return _integer(self.take(name), f"{self._what}.{name}", largest)

    def perhaps_integer(self, name: str, largest: int) -> int | None:
        """An integer from 0 to `largest`, None where the field is missing."""
        value = self.perhaps(name)
        return None if value is None else _integer(value, f"{self._what}.{name}", largest)

    def items(self, name: str, count_max: int) -> Sequence[Plain]:
        """An array of at most `count_max` elements."""
        value = self.take(name)
        if not isinstance(value, list):
            raise _malformed(f"{self._what}.{name} is no array")
        if len(value) > count_max:
            raise RemoteProtocolError(
                ErrorCode.TOO_LARGE, f"{self._what}.{name} has {len(value)} elements, {count_max} are allowed"
            )
        return value

    def rest(self) -> Mapping[str, object]:
        """The fields that nobody took; call it last."""
        if len(self._left) > self._config.extra_max:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{self._what} has {len(self._left)} unknown fields")
        return self._left


def _elements(value: Plain, count: int, what: str) -> list[Plain]:
    """The first `count` elements of an array; later versions may have put more behind them."""
    if not isinstance(value, list) or len(value) < count:
        raise _malformed(f"{what} is no array of {count}")
    return value[:count]


def _text(value: Plain, what: str, bytes_max: int) -> str:
    if not isinstance(value, str):
        raise _malformed(f"{what} is no text")
    if len(value.encode()) > bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{what} is longer than {bytes_max} bytes")
    return value


def _bytes(value: Plain, what: str, bytes_max: int) -> bytes:
    """The bytes of a field that may be missing."""
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise _malformed(f"{what} is not bytes")
    if len(value) > bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{what} is longer than {bytes_max} bytes")
    return value


def _integer(value: Plain, what: str, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise _malformed(f"{what} is no integer from 0 to {largest}")
    return value


def _number(value: Plain, what: str, least: float, largest: float) -> float:
    # a NaN compares false with everything and so fails the range
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= largest:
        raise _malformed(f"{what} is no number from {least:g} to {largest:g}")
    return float(value)


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)
