"""Records as they are kept: the envelope squeezed, the payload left unread until somebody asks for it.

A node knows many more peers than it talks to. A decoded card takes three times as much memory as its envelope, and an envelope
consists for the most part of field names and of what every other card says too. So only the envelope is kept, deflated with a
dictionary of what cards usually say; what was asked for lately stays decoded. Nothing but what this node has squeezed itself is
ever inflated, after the envelope was verified, so that no peer chooses what comes out.

A stamp stands behind the deflated envelope, as it is: a signature cannot be squeezed.

What routing asks of everybody, the models and the hardware, is kept as values that peers with the same ones share.

Source: RFC 1950 section 2.2 (preset dictionaries), RFC 1951.
Spec: docs/spec/03-records.md, section "Peer table".
"""

import zlib
from dataclasses import dataclass

from protocol.records.config import RecordConfig
from protocol.records.envelope import reopen, stamped
from protocol.records.values import Card, Hardware, ModelOffer, Record

DECODED_MAX = 128
"""Records that stay decoded, a count: the connected peers, and what is news and comes several times. 2 kB each."""

SERVINGS_MAX = 1024
"""Different sets of models and hardware that are shared, a count; past it those that came first are shared no more."""

WINDOW_BITS = -12
"""Deflate's window, as zlib counts: 4 KiB, the longest card; negative for no header and no checksum, which memory needs not."""

MEMORY_LEVEL = 5
"""Memory of zlib's compressor while it works, 1 to 9: about 30 kB; the most would be no better on half a kilobyte."""

DICTIONARY = (
    b"\xa8verdict\x81\xa7accused\x92\xc4\x08\xa5edges\x81\x94\xc4&\x00$\x08\x01\x12 \xa4beat\x82\xa8draining\xc2\xa5loads"
    b"\xa7chatembeddings\xa4rank\xa8generate\xa6images\xa6speech\xa3f32\xa3f16\xa4bf16\xa2q8\xa2q4\xa6openai\xa4onnx\xa4echo"
    b"NVIDIA GeForce RTX Tesla AMD EPYC Ryzen Intel(R) Xeon(R) CPU Core(TM) Apple M1 M2 M3 Max Ultra Pro 7-Core Processor @ 2."
    b"llama-3.1-8b-instruct-qwen2.5-mistral-gemma-phi-nomic-embed-text-bge-small-en-v1.5-all-MiniLM-L6-v2"
    b"\x86\xa9addresses\x91\xc4\x04\xc0\xa8\x91\x02\xcd\x03\xa5\x03&\x00$\x08\x01\x12 \xa8hardware\x86\xa9cpu_model"
    b"\xa9cpu_count\xacmemory_bytes\xaanuma_nodes\x01\xa4gpus\x91\x82\xa4name\xacmemory_bytes\xcf\x00\x00\x00\xa4gpus\x90"
    b"\xa4nics\x91\x83\xa4name\xa4eth0\xaaspeed_mbps\xcd\xa9mtu_bytes\xcd\x05\xdc\xa4nics\x90\xa6models\x91\x86\xa5model"
    b"\xa8features\x91\xaaembeddings\xaecontext_length\x00\xa9precision\xa0\xacmemory_bytes\x00\xa6engine\xa4echo"
    b"\xaacoordinate\x93\x98\xcb?\xcb\xbf\xcb?\xa5agent\xafisochrone/0.1.0\x87\xabincarnation\xcf\x00\x00"
    b"\x97\xa9isochrone\xa4card\xc4&\x00$\x08\x01\x12 \x01\xcf\x00\x00\x01\xa3\x18\x5c\x50\xc5\x01"
)
"""What cards usually say; the likeliest stands last, where deflate finds it by the shortest distance."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What routing asks of everybody: what a node serves, and on what."""

    hardware: Hardware
    models: tuple[ModelOffer, ...]


class RecordPacker:
    """Squeezes records and reads them again; whoever runs many nodes in one process may hand in one that shares them."""

    def __init__(self) -> None:
        self._decoded: dict[bytes, Record] = {}  # by their packed bytes, the longest unasked first
        self._servings: dict[object, Serving] = {}

    def pack(self, record: Record) -> bytes:
        """The record as it is kept."""
        squeezer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, WINDOW_BITS, MEMORY_LEVEL, zdict=DICTIONARY)
        packed = squeezer.compress(record.envelope) + squeezer.flush() + (record.stamp or b"")
        self._remember(packed, record)
        return packed

    def unpack(self, packed: bytes, config: RecordConfig) -> Record:
        """The record that `pack` has made this of; envelope and stamp are byte for byte what they were."""
        record = self._decoded.pop(packed, None)
        if record is None:
            inflater = zlib.decompressobj(WINDOW_BITS, zdict=DICTIONARY)
            record = stamped(reopen(inflater.decompress(packed), config), inflater.unused_data or None)
        self._remember(packed, record)
        return record

    def serving(self, card: Card) -> Serving:
        """What the card says of models and hardware; the same object for cards that say the same."""
        hardware = card.hardware
        alike = (hardware.cpu_model, hardware.memory_bytes, len(hardware.gpus), tuple(offer.model for offer in card.models))
        fresh = Serving(hardware, card.models)
        known = self._servings.get(alike)
        if known is not None and known == fresh:
            return known
        self._servings.pop(alike, None)
        self._servings[alike] = fresh
        if len(self._servings) > SERVINGS_MAX:
            del self._servings[next(iter(self._servings))]
        return fresh

    def _remember(self, packed: bytes, record: Record) -> None:
        self._decoded[packed] = record
        if len(self._decoded) > DECODED_MAX:
            del self._decoded[next(iter(self._decoded))]
