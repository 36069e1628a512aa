"""What must always hold, and what must hold again once everything is mended.

Safety is looked at with every fact a core tells, and the bounds once every virtual second: I1, a record is accepted only if the
peer it names has sealed these very bytes, and sequence numbers only grow; I5, nobody is suspected for a silence that is this
node's own stall; I6, everything that is bounded is within its bound. Liveness is looked at after healing: I2, all living nodes
hold the same newest card of every living node, and none of them is suspected or gone.

Source: the invariants of docs/simulation.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import gossip, probe
from protocol.identity import PeerId
from protocol.membership import Standing
from protocol.node import Output
from protocol.records import Record, RecordKind
from sim.process import Process
from sim.world import World

BOUNDS_EVERY_S = 1.0
"""Seconds between two looks at the bounds: looking after every event would cost more than the event."""

SPREAD_S = 10.0
"""Seconds that a card may be under way before it counts as missing: five rounds of anti-entropy."""

SLACK_S = 0.3
"""Seconds by which a silence may seem longer to a core than it was: the lateness it does not yet call a stall, rounded up."""


class CheckFailedError(Exception):
    """An invariant does not hold; `invariant` is its short name."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


@dataclass
class Safety:
    """Watches a world from the moment it is made."""

    world: World
    sealed: set[bytes] = field(default_factory=set[bytes])
    newest: dict[tuple[int, int, PeerId, RecordKind], int] = field(default_factory=dict[tuple[int, int, PeerId, RecordKind], int])

    def __post_init__(self) -> None:
        self.world.watchers.append(self._watch)
        self.world.seal_watchers.append(self._note_sealed)
        self.world.at(self.world.now + BOUNDS_EVERY_S, self._look_at_bounds)

    def _note_sealed(self, _process: Process, record: Record) -> None:
        self.sealed.add(record.envelope)

    def _watch(self, process: Process, output: Output) -> None:
        match output:
            case gossip.RecordAccepted(record):
                self._look_at_record(process, record)
            case probe.PeerSuspected(peer):
                self._look_at_silence(process, peer)
            case _:
                pass

    def _look_at_record(self, process: Process, record: Record) -> None:
        where = f"n{process.index} accepted {record.kind} {record.sequence} of {self.world.journal.names.get(record.peer_id)}"
        if record.envelope not in self.sealed:
            raise CheckFailedError("I1", f"{where}, which that peer has not sealed")
        place = (process.index, process.life, record.peer_id, record.kind)
        if record.sequence <= self.newest.get(place, 0):
            raise CheckFailedError("I1", f"{where} after {self.newest[place]}")
        self.newest[place] = record.sequence

    def _look_at_silence(self, process: Process, peer: PeerId) -> None:
        heard = process.heard.get(peer)
        if heard is None or process.slow_s > 0.0 or process.busy_until >= heard:
            return  # a slow process takes in late what came in time
        silent_s = self.world.now - heard - process.stalled_s(heard, self.world.now)
        limit_s = process.config.probe.echo_s + process.config.probe.suspect_after_s - SLACK_S
        if silent_s < limit_s:
            who = self.world.journal.names.get(peer)
            raise CheckFailedError("I5", f"n{process.index} suspects {who} after {silent_s:.3f} s of silence in its own time")

    def _look_at_bounds(self) -> None:
        for process in self.world.processes:
            if process.running:
                self._look_at_node(process)
        self.world.at(self.world.now + BOUNDS_EVERY_S, self._look_at_bounds)

    def _look_at_node(self, process: Process) -> None:
        node, config = process.node, process.config
        amounts = (
            ("peers in the table", len(node.table.peers()), config.table.peers_max + 1),
            ("peers in membership", len(node.membership._peers), config.membership.peers_max),
            ("dials under way", len(node.membership._under_way), config.membership.dials_max),
            ("peers of gossip", len(node.gossip._peers), config.gossip.peers_max),
            ("records asked for", len(node.gossip._wants), config.gossip.wants_max * config.gossip.peers_max),
            ("refused hashes", len(node.gossip._refused), config.gossip.refused_max),
            ("tombstones", len(node.table._tombstones), config.table.tombstones_max),
            ("probed peers", len(node.probe._peers), config.probe.peers_max),
        )
        for what, amount, limit in amounts:
            if amount > limit:
                raise CheckFailedError("I6", f"n{process.index} has {amount} {what}, {limit} at most")


def unhealed(world: World, *, fresh_s: float = SPREAD_S) -> str | None:
    """What keeps the world from having healed, or None.

    Args:
        world: with no fault on.
        fresh_s: a card issued within so many seconds may still be under way.
    """
    living = world.working()
    cards = {process.peer_id: process.node.table.get(process.peer_id, RecordKind.CARD) for process in living}
    for process in living:
        for other in living:
            own = cards[other.peer_id]
            if other is process or own is None or world.now - other.started_at < fresh_s:
                continue
            pair = f"n{process.index} {{}} n{other.index}"
            held = process.node.table.get(other.peer_id, RecordKind.CARD)
            fresh = own.issued_s > world.wall_s(other) - fresh_s
            if held is None or (held.sequence != own.sequence and not fresh):
                return "I2: " + pair.format("has not the newest card of")
            standing, why = process.node.membership.standing(other.peer_id, world.now)
            if standing in (Standing.SUSPECTED, Standing.GONE):
                return "I2: " + pair.format("holds") + f" for {standing}: {why}"
    return None


def healed(world: World) -> Callable[[], bool]:
    """The same as a question to `World.run_until`."""
    return lambda: unhealed(world) is None
