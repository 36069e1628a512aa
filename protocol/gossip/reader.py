"""How gossip reads what comes: messages, beats, and the records in them."""

from protocol.gossip.beats import decode_beat
from protocol.gossip.messages import Message, decode_message
from protocol.identity import PeerId
from protocol.load import Beat
from protocol.records import RecordReader


class GossipReader(RecordReader):
    """Reads messages; whoever runs many nodes in one process may hand in one that remembers what it has read."""

    def message(self, payload: bytes) -> Message | None:
        """See `decode_message`."""
        return decode_message(payload)

    def owner(self, _peer_id: PeerId, _wall_s: float) -> bytes | None:
        """Whose node a peer is, by a certificate that was verified; None where nobody is told apart."""
        return None

    def beat(self, payload: bytes) -> Beat:
        """The beat that a message carries.

        Raises:
            RemoteProtocolError: TOO_LARGE or MALFORMED.
        """
        return decode_beat(payload)
