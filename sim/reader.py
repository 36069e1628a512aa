"""Reading records once for all nodes: a thousand nodes of one process would verify and decode every record a thousand times.

What is remembered is the outcome for exactly these bytes; whether a record is of this network and this time is asked each time.
Nodes that hold the same record share one object, which also keeps ten thousand tables of ten thousand cards in memory.
"""

from protocol.errors import RemoteProtocolError
from protocol.gossip import GossipReader, Message
from protocol.load import Beat
from protocol.records import (
    Record,
    RecordConfig,
    RecordHeader,
    RecordPacker,
    check_network_and_time,
    reopen,
)

REMEMBERED_MAX = 200_000
"""Envelopes, a count: twenty for each of 10,000 nodes; past it the oldest are read again."""

MESSAGES_MAX = 20_000
"""Messages and beats, a count each: a few virtual seconds of a thousand nodes, longer than any is under way."""


class SharedReader(GossipReader):
    """Remembers headers and records by their bytes, faults too."""

    def __init__(self) -> None:
        self._headers: dict[bytes, RecordHeader | RemoteProtocolError] = {}
        self._records: dict[bytes, Record] = {}
        self._messages: dict[bytes, Message | None] = {}
        self._beats: dict[bytes, Beat] = {}

    def message(self, payload: bytes) -> Message | None:
        """See `GossipReader`; most messages go to many peers."""
        try:
            return self._messages[payload]
        except KeyError:
            message = self._messages[payload] = super().message(payload)
        if len(self._messages) > MESSAGES_MAX:
            del self._messages[next(iter(self._messages))]
        return message

    def beat(self, payload: bytes) -> Beat:
        """See `GossipReader`."""
        beat = self._beats.get(payload)
        if beat is None:
            beat = self._beats[payload] = super().beat(payload)
            if len(self._beats) > MESSAGES_MAX:
                del self._beats[next(iter(self._beats))]
        return beat

    def peek(self, envelope: bytes, config: RecordConfig) -> RecordHeader:
        """See `RecordReader`."""
        known = self._headers.get(envelope)
        if known is None:
            try:
                known = super().peek(envelope, config)
            except RemoteProtocolError as error:
                known = error
            self._headers[envelope] = known
            if len(self._headers) > REMEMBERED_MAX:
                del self._headers[next(iter(self._headers))]
        if isinstance(known, RemoteProtocolError):
            raise RemoteProtocolError(known.code, known.detail)
        return known

    def open(self, envelope: bytes, network_id: str, wall_s: float, config: RecordConfig) -> Record:
        """See `RecordReader`."""
        known = self._records.get(envelope)
        if known is not None:
            check_network_and_time(self.peek(envelope, config), network_id, wall_s, config)
            return known
        record = self._records[envelope] = super().open(envelope, network_id, wall_s, config)
        if len(self._records) > REMEMBERED_MAX:
            del self._records[next(iter(self._records))]
        return record

    def stamped(self, record: Record, stamp: bytes | None) -> Record:
        """See `RecordReader`; from now on the record comes with this stamp."""
        with_stamp = super().stamped(record, stamp)
        if with_stamp is not record and record.envelope in self._records:
            self._records[record.envelope] = with_stamp
        return with_stamp


class SharedPacker(RecordPacker):
    """Keeps records as they are, one object for all tables: what many nodes hold need not be squeezed for each."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[bytes, Record] = {}

    def pack(self, record: Record) -> bytes:
        """See `RecordPacker`; the envelope stands for the record."""
        known = self._kept.setdefault(record.envelope, record)
        if len(self._kept) > REMEMBERED_MAX:
            del self._kept[next(iter(self._kept))]
        return known.envelope

    def unpack(self, packed: bytes, config: RecordConfig) -> Record:
        """See `RecordPacker`."""
        record = self._kept.get(packed)
        return reopen(packed, config) if record is None else record
