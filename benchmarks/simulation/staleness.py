"""How old what nodes know is: the load of the 64 nearest, and the card of anybody."""

from dataclasses import dataclass, field

from benchmarks.simulation.load import Load
from benchmarks.simulation.observe import Beats
from protocol.records import Record, RecordKind
from sim.process import Process
from sim.world import World

OBSERVERS = 32
"""Nodes that are looked into, a count: with 64 peers each a thousandth of the samples is still two at every look."""

NEAREST = 64
"""Peers whose load matters, a count: as in the goal."""

CARDS_LOOKED_AT = 400
"""Pairs of nodes whose card is looked at each time, a count."""


class SealedCards:
    """When which cards were signed since it was made, to say for how long one that is held has been replaced."""

    def __init__(self, world: World) -> None:
        """Watches a world from now on."""
        self._world = world
        self._sealed: dict[int, list[tuple[int, float]]] = {}
        world.seal_watchers.append(self._note)

    def _note(self, process: Process, record: Record) -> None:
        if record.kind is RecordKind.CARD:
            self._sealed.setdefault(process.index, []).append((record.sequence, self._world.now))

    def wrong_for_s(self, observer: Process, subject: Process) -> float | None:
        """For how long, in seconds, the card that one holds of another has not been the newest; None where it holds none."""
        held = observer.node.table.get(subject.peer_id, RecordKind.CARD)
        if held is None:
            return None
        newer = next((at for sequence, at in self._sealed.get(subject.index, ()) if sequence > held.sequence), None)
        return 0.0 if newer is None else self._world.now - newer


@dataclass
class Staleness:
    """Samples taken by `look`; seconds."""

    world: World
    load: Load
    beat_age_s: list[float] = field(default_factory=list[float])
    load_wrong_s: list[float] = field(default_factory=list[float])
    wait_wrong_s: list[float] = field(default_factory=list[float])
    card_wrong_s: list[float] = field(default_factory=list[float])
    load_unknown: int = 0
    cards_unknown: int = 0

    def __post_init__(self) -> None:
        self._beats = Beats(self.world)
        self._luck = self.world.streams.of("staleness")
        self._cards = SealedCards(self.world)
        delays, processes = self.world.network.delays, self.world.processes
        self._near: list[tuple[Process, list[Process]]] = []
        for observer in self._luck.sample(processes, min(OBSERVERS, len(processes))):
            others = [process for process in processes if process is not observer]
            others.sort(key=lambda other: (delays.one_way_s(observer.index, other.index), other.index))
            self._near.append((observer, others[:NEAREST]))

    def look(self) -> None:
        """Takes one sample of everything."""
        now = self.world.now
        for observer, near in self._near:
            for subject in near:
                beat = observer.node.peer(subject.peer_id, now).beat
                wrong_s = misjudged_s = None
                if beat is not None and beat.loads:
                    known = (beat.loads[0].running, beat.loads[0].waiting)
                    wrong_s = self.load.wrong_for_s(subject.index, known)
                    misjudged_s = self.load.misjudged_for_s(subject.index, known)
                sent_at = self._beats.sent_at.get((observer.index, subject.index))
                if sent_at is not None:
                    self.beat_age_s.append(now - sent_at)
                if wrong_s is None or misjudged_s is None:
                    self.load_unknown += 1
                else:
                    self.load_wrong_s.append(wrong_s)
                    self.wait_wrong_s.append(misjudged_s)
        for _ in range(CARDS_LOOKED_AT):
            observer, subject = self._luck.sample(self.world.processes, 2)
            wrong_s = self._cards.wrong_for_s(observer, subject)
            if wrong_s is None:
                self.cards_unknown += 1
            else:
                self.card_wrong_s.append(wrong_s)
