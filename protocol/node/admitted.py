"""A node of a private network: whose records it takes, and how it drops a peer that is a member no more.

A card carries the proof of its author's membership, so that a member cannot bring in others by telling of them; a record of
another kind is taken from an author whose proof was seen. What a reader checks comes after the signature of the record and before
anything is kept of it.

Spec: docs/spec/09-admission.md, section "Records".
"""

from protocol.admission import Admission, Member
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import GossipReader, Message, RecordExpired
from protocol.identity import PeerId
from protocol.load import Beat
from protocol.node.machine import Node
from protocol.records import Card, Record, RecordConfig, RecordHeader, RecordKind
from protocol.table import record_key


class AdmittedReader(GossipReader):
    """Reads what another reader reads, and takes records of members alone."""

    def __init__(self, admission: Admission, inner: GossipReader | None = None) -> None:
        """Takes the check, and the reader that does the rest."""
        self._admission = admission
        self._inner = inner or GossipReader()

    def message(self, payload: bytes) -> Message | None:
        """See `GossipReader`."""
        return self._inner.message(payload)

    def owner(self, peer_id: PeerId, wall_s: float) -> bytes | None:
        """See `GossipReader`."""
        member = self._admission.member(peer_id, wall_s)
        return None if member is None else f"{member.network_id}/{member.owner}".encode()

    def beat(self, payload: bytes) -> Beat:
        """See `GossipReader`."""
        return self._inner.beat(payload)

    def peek(self, envelope: bytes, config: RecordConfig) -> RecordHeader:
        """See `RecordReader`."""
        return self._inner.peek(envelope, config)

    def stamped(self, record: Record, stamp: bytes | None) -> Record:
        """See `RecordReader`."""
        return self._inner.stamped(record, stamp)

    def check(self, header: RecordHeader, network_id: str, wall_s: float, config: RecordConfig) -> None:
        """Take records of this network and of those it is federated with.

        Raises:
            RemoteProtocolError: as `check_network_and_time`; NOT_ADMITTED in place of WRONG_NETWORK while this network is
                federated with any: others may be federated with more, which is no fault of whoever passed the record on.
        """
        self._inner.check(header, self._network_of(header, network_id, wall_s), wall_s, config)

    def open(self, envelope: bytes, network_id: str, wall_s: float, config: RecordConfig) -> Record:
        """Verify a record and the membership of its author.

        Raises:
            RemoteProtocolError: as `open_record`, then as `Admission.check`; NOT_ADMITTED for edges or a verdict of an author
                whose proof was not seen yet; WRONG_NETWORK for a record of another network than its author's.
        """
        header = self._inner.peek(envelope, config)
        record = self._inner.open(envelope, self._network_of(header, network_id, wall_s), wall_s, config)
        card = record.payload if isinstance(record.payload, Card) else None
        if card is not None:
            member: Member | None = self._admission.check(record.peer_id, card.membership, wall_s)
        else:
            member = self._admission.member(record.peer_id, wall_s)
        if member is None:
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, f"a {record.kind} of a peer that has shown no certificate yet")
        if member.network_id != header.network_id:
            detail = f"a record of network {header.network_id} by a member of {member.network_id}"
            raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, detail)
        return record

    def _network_of(self, header: RecordHeader, network_id: str, wall_s: float) -> str:
        """The network that a record has to be of."""
        if header.network_id == network_id or not (networks := self._admission.networks(wall_s)):
            return network_id
        if header.network_id in networks:
            return header.network_id
        raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, f"a record of network {header.network_id!r}")


def expel(node: Node, peer_id: PeerId, now: float) -> None:
    """Drop what a node keeps of a peer that is a member no more: its records, and what others say of it.

    Its connection is closed by whoever holds it.
    """
    node.suspicion.handle_forgotten(record_key(peer_id, RecordKind.CARD), now)
    node.gossip.outputs.extend(RecordExpired(record) for record in node.table.remove(peer_id))
    node.handle_timer(now)
