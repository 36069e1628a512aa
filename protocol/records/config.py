"""The bounds of records: sizes, counts, lengths, ranges and lifetimes.

All nodes of a network use the same bounds, or a record that one accepts dies at the next; the defaults are the specified values.

Spec: docs/spec/03-records.md, section "Limits".
"""

from dataclasses import dataclass

from protocol.records.values import RecordKind
from protocol.wire import PackingLimits

SIGNATURE_BYTES = 64
"""Length in bytes of the Ed25519 signature that an envelope starts with (RFC 8032 section 5.1.6)."""

NETWORK_ID_BYTES_MAX = 64
"""Longest network id in UTF-8 bytes: room for a hash in hex."""

HEADER_BYTES_MAX = 150
"""Most bytes that the msgpack round the payload takes: array 1, network id 66, kind 6, peer id 46, numbers 27, bin 3; 149."""

TIME_MS_MAX = 2**53 - 1
"""Largest wall-clock time, in milliseconds since 1970: what a float64 of milliseconds holds exactly."""

SEQUENCE_MAX = 2**63 - 1
"""Largest sequence number, unitless: the largest integer that is packed. Sequence numbers start at 1."""

SAMPLES_MAX = 65_535
"""Largest sample count of an edge: it fits three bytes, and more samples say no more."""

COUNT_MAX = 1_000_000
"""Largest number of CPUs, NUMA nodes, requests running or waiting, slots: a million is already absurd."""

SIZE_MAX = 2**53 - 1
"""Largest size in bytes, tokens or Mbit/s: what every JSON reader holds exactly."""


DIGEST_BYTES = 32
"""Length of the digest of a model's weights in bytes: SHA-256."""

SUBJECT_BYTES = 8
"""Length in bytes of the key by which an accusation names its subject: the key of its card."""


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """Every bound of a record; the defaults are the specification.

    Attributes:
        card_bytes_max: whole envelope of a card. A usual card has 500 to 900 bytes; 4 KiB hold about 35 models.
        edges_bytes_max: whole envelope of edges; 128 edges of 62 bytes and the longest header take 8,096 bytes.
        verdict_bytes_max: whole envelope of a verdict; 128 accusations of 21 bytes take 2,700.
        card_lifetime_s_max: from issue to expiry of a card; an address is believed for a day at most.
        edges_lifetime_s_max: from issue to expiry of edges; paths keep for about an hour.
        verdict_lifetime_s_max: from issue to expiry of a verdict; who is not heard for so long is forgotten anyway.
        skew_s: how far the clocks of two nodes may be apart: a record may come from so far in the future, and is kept so long
            after its expiry.
        depth_max: arrays and maps inside one another in a payload.
        values_max: values in all in a payload; 128 edges have 641.
        addresses_max: addresses of a card.
        models_max: model offers of a card.
        gpus_max: GPUs of a card.
        nics_max: network interfaces of a card.
        edges_max: measured paths of an edges record.
        measured_max: measured paths of an edges record in its compact form, of 9 bytes each.
        accused_max: accusations of a verdict; a node watches a dozen peers and hears of more only when a network is cut.
        features_max: features of one model; later versions know more than this one.
        extra_max: unknown fields of one map.
        name_bytes_max: text that names something: a model, a CPU, a GPU, an interface, an engine, an agent.
        membership_bytes_max: what a card shows of its node's network (chapter 9): two statements and what is round them.
        fabric_bytes_max: the advert of a card's fabrics (chapter 11).
        rtt_s_max: longest round trip, jitter, height, and farthest component of a coordinate, in seconds.
        error_max: largest relative error of a coordinate.
    """

    card_bytes_max: int = 4096
    edges_bytes_max: int = 8192
    verdict_bytes_max: int = 4096
    card_lifetime_s_max: float = 86_400.0
    edges_lifetime_s_max: float = 3_600.0
    verdict_lifetime_s_max: float = 600.0
    skew_s: float = 60.0
    depth_max: int = 8
    values_max: int = 1024
    addresses_max: int = 16
    models_max: int = 64
    gpus_max: int = 32
    nics_max: int = 32
    edges_max: int = 128
    measured_max: int = 128
    accused_max: int = 128
    features_max: int = 16
    extra_max: int = 32
    name_bytes_max: int = 256
    membership_bytes_max: int = 1600
    fabric_bytes_max: int = 768
    rtt_s_max: float = 60.0
    error_max: float = 1.5

    @property
    def bytes_max(self) -> int:
        """The longest envelope of any kind, in bytes."""
        return max(self.card_bytes_max, self.edges_bytes_max, self.verdict_bytes_max)

    def bytes_max_of(self, kind: RecordKind) -> int:
        """The longest envelope of `kind`, in bytes."""
        match kind:
            case RecordKind.CARD:
                return self.card_bytes_max
            case RecordKind.EDGES:
                return self.edges_bytes_max
            case RecordKind.VERDICT:
                return self.verdict_bytes_max

    def lifetime_s_max_of(self, kind: RecordKind) -> float:
        """The longest time from issue to expiry of a record of `kind`, in seconds."""
        match kind:
            case RecordKind.CARD:
                return self.card_lifetime_s_max
            case RecordKind.EDGES:
                return self.edges_lifetime_s_max
            case RecordKind.VERDICT:
                return self.verdict_lifetime_s_max

    def payload_limits(self, kind: RecordKind) -> PackingLimits:
        """What the msgpack of a payload of `kind` may hold; the envelope is the tighter bound on its size."""
        return PackingLimits(size_bytes_max=self.bytes_max_of(kind), depth_max=self.depth_max, values_max=self.values_max)

    def payload_bytes_sure_of(self, kind: RecordKind) -> int:
        """A payload of so many bytes fits an envelope of `kind` whatever its header holds."""
        return self.bytes_max_of(kind) - SIGNATURE_BYTES - HEADER_BYTES_MAX


DEFAULT_RECORD_CONFIG = RecordConfig()
