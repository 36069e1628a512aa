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
        self._sealed: dict[int, list[tuple[int, float]]] = {process.index: [] for process in self.world.processes}
        self.world.seal_watchers.append(self._note_sealed)
        delays, processes = self.world.network.delays, self.world.processes
        self._near: list[tuple[Process, list[Process]]] = []
        for observer in self._luck.sample(processes, min(OBSERVERS, len(processes))):
            others = [process for process in processes if process is not observer]
            others.sort(key=lambda other: (delays.one_way_s(observer.index, other.index), other.index))
            self._near.append((observer, others[:NEAREST]))

    def _note_sealed(self, process: Process, record: Record) -> None:
        if record.kind is RecordKind.CARD:
            self._sealed[process.index].append((record.sequence, self.world.now))

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
            self._look_at_card(observer, subject)

    def _look_at_card(self, observer: Process, subject: Process) -> None:
        """A card is wrong since the first newer one was signed."""
        held = observer.node.table.get(subject.peer_id, RecordKind.CARD)
        if held is None:
            self.cards_unknown += 1
            return
        newer = next((at for sequence, at in self._sealed[subject.index] if sequence > held.sequence), None)
        self.card_wrong_s.append(0.0 if newer is None else self.world.now - newer)
