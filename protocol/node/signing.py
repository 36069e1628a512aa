"""Signing what a node tells: under numbers that are safe to use, and given to gossip as soon as it is signed."""

from collections.abc import Callable

from protocol.gossip import Gossip
from protocol.identity import Identity
from protocol.node.config import NodeConfig, Output, RecordSealed, ReserveSequences
from protocol.node.strangers import Strangers
from protocol.records import Payload, Record, Sequencer, fit, seal


class Signing:
    """The machine's part of a node.

    Attributes:
        unreserved_until: monotonic seconds until which nothing is signed, because the disk refused a reservation.
    """

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        sequencer: Sequencer,
        gossip: Gossip,
        strangers: Strangers,
        act: Callable[[Output], None],
        wall: Callable[[float], float],
    ) -> None:
        """Signs nothing yet.

        Args:
            config: lifetimes and bounds.
            identity: the key that signs.
            sequencer: sequence numbers.
            gossip: spreads what is signed.
            strangers: tells those who do not speak the mesh's gossip.
            act: takes an output of the node.
            wall: the wall clock in seconds since 1970 at a monotonic time.
        """
        self._config = config
        self._identity = identity
        self.sequencer = sequencer
        self._gossip = gossip
        self._strangers = strangers
        self._act = act
        self._wall = wall
        self.unreserved_until = float("-inf")

    def handle_reserved(self, upto: int) -> None:
        """Learns that sequence numbers below `upto` are safe to use."""
        self.sequencer.reserve(upto)
        self.unreserved_until = float("-inf")

    def may_sign(self, now: float) -> bool:
        """Whether a sequence number is safe to use; asks for more in good time, and again when the disk refused."""
        if (upto := self.sequencer.needs_reservation()) is not None:
            self._act(ReserveSequences(upto))
        if self.sequencer.is_ready:
            return True
        self.unreserved_until = now + self._config.reserve_retry_s
        return False

    def spread(self, payload: Payload, lifetime_s: float, now: float) -> Record:
        """Seals a record and gives it to gossip."""
        wall_s = self._wall(now)
        limits = self._config.table.records
        told = fit(payload, limits)
        record = self._strangers.stamped(
            seal(self._identity, self._config.network_id, told, self.sequencer.next(), wall_s, wall_s + lifetime_s, limits)
        )
        self._act(RecordSealed(record))
        self._gossip.publish(record, now)
        self._strangers.publish(record, now)
        return record
