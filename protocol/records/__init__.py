"""The records nodes tell one another, card, beat and edges, and the signed envelope round them."""

from protocol.records.config import DEFAULT_RECORD_CONFIG, NETWORK_ID_BYTES_MAX, SEQUENCE_MAX, RecordConfig
from protocol.records.envelope import check_network_and_time, open_record, peek, seal, signed_bytes
from protocol.records.fit import fit
from protocol.records.mapping import kind_of
from protocol.records.sequencer import SEQUENCE_BLOCK, Sequencer
from protocol.records.values import (
    Beat,
    Card,
    Edge,
    Edges,
    Gpu,
    Hardware,
    ModelLoad,
    ModelOffer,
    Nic,
    Payload,
    Record,
    RecordHeader,
    RecordKind,
)

__all__ = [
    "DEFAULT_RECORD_CONFIG",
    "NETWORK_ID_BYTES_MAX",
    "SEQUENCE_BLOCK",
    "SEQUENCE_MAX",
    "Beat",
    "Card",
    "Edge",
    "Edges",
    "Gpu",
    "Hardware",
    "ModelLoad",
    "ModelOffer",
    "Nic",
    "Payload",
    "Record",
    "RecordConfig",
    "RecordHeader",
    "RecordKind",
    "Sequencer",
    "check_network_and_time",
    "fit",
    "kind_of",
    "open_record",
    "peek",
    "seal",
    "signed_bytes",
]
