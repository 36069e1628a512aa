"""The records nodes tell one another, card, edges and verdict, and the signed envelope round them."""

from protocol.records.config import COUNT_MAX, DEFAULT_RECORD_CONFIG, NETWORK_ID_BYTES_MAX, SEQUENCE_MAX, RecordConfig
from protocol.records.envelope import (
    RecordReader,
    check_network_and_time,
    open_record,
    peek,
    reopen,
    seal,
    signed_bytes,
    stamped,
)
from protocol.records.fit import fit
from protocol.records.mapping import decode_payload, encode_payload, kind_of
from protocol.records.packing import RecordPacker, Serving
from protocol.records.sequencer import SEQUENCE_BLOCK, Sequencer
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
    Record,
    RecordHeader,
    RecordKind,
    Verdict,
)

__all__ = [
    "COUNT_MAX",
    "DEFAULT_RECORD_CONFIG",
    "NETWORK_ID_BYTES_MAX",
    "SEQUENCE_BLOCK",
    "SEQUENCE_MAX",
    "Accusation",
    "Card",
    "Edge",
    "Edges",
    "Gpu",
    "Hardware",
    "ModelOffer",
    "Nic",
    "Payload",
    "Record",
    "RecordConfig",
    "RecordHeader",
    "RecordKind",
    "RecordPacker",
    "RecordReader",
    "Sequencer",
    "Serving",
    "Verdict",
    "check_network_and_time",
    "decode_payload",
    "encode_payload",
    "fit",
    "kind_of",
    "open_record",
    "peek",
    "reopen",
    "seal",
    "signed_bytes",
    "stamped",
]
