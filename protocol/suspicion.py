"""What nodes say of peers that they watch: who is silent, who says so, and what this node says itself.

Every node watches the peers at the other ends of its mesh links. When one falls silent it is accused in the node's verdict, a
signed record that lists everybody the node holds for silent now; the newest verdict of a node replaces its earlier ones, so
taking a name off the list takes the accusation back. Verdicts reach everyone. A peer that `confirmations` others accuse is
doubted also by those who have no connection to it; one voice is not enough, so that no single liar takes a node out. Where
enough others accuse a peer already, one's own voice is saved (Lifeguard's confirmations, turned to save traffic).

An accusation names an incarnation of its subject, a number on the subject's card. A node that hears itself accused waits a
moment, for those who hear it again take their accusations back by themselves, and then publishes a card with a greater
incarnation, which makes all that was said against earlier ones void (SWIM's refutation). Who is refuted often is not believed
for a while: an accuser has a credit that each accusation refuted takes from.

Who takes an accusation back has heard its subject again. An accuser that forgets its subject says nothing: the verdict runs
out by itself, after everybody else has forgotten the subject too, and a voice that ran out brings nobody back. A peer that was
forgotten and lives, because a network was cut in two, hears what was said of it and refutes it: its card is news again.

Here as on the wire peers are named by the keys of their cards: an accusation may be heard before the card of its subject.

Source: A. Das, I. Gupta, A. Motivala, "SWIM", DSN 2002, sections 4.2 (suspicion, incarnations); A. Dadgar, J. Phillips, J.
Currey, "Lifeguard", 2017 (confirmations).
Spec: docs/spec/07-membership.md, section "Verdicts".
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol.encoding import Luck
from protocol.table import RecordKey
from protocol.timers import TimerQueue


@dataclass(frozen=True, slots=True)
class SuspicionConfig:
    """Bounds and intervals; seconds unless the name says otherwise."""

    confirmations: int = 2
    """Accusers that make a peer doubted where there is no connection to it: one liar is not enough."""
    voices_max: int = 4
    """Where so many others accuse a peer, this node saves its own voice: two more than needed, as some may vanish."""
    hold_back_s: float = 0.05
    """Up to this long an accusation waits at random, so that the first voices are heard by the others and save theirs."""
    hold_back_idle_s: float = 2.0
    """The same, after half of it, for a peer that this node does not watch: those who do will say it, if they live themselves."""
    tell_interval_s: float = 0.25
    """Shortest time between two verdicts of this node: a cut network takes many peers at once, and one verdict names them all."""
    past_s: float = 240.0
    """A forgotten peer is still named so long in verdicts that are told for others: leaving it out would take the accusation
    back, and some forget it up to a minute later, newcomers up to two."""
    renew_s: float = 120.0
    """A verdict that still names somebody is told anew after this long; half of its lifetime."""
    refute_min_s: float = 1.5
    refute_max_s: float = 2.5
    """A node that hears itself accused waits so long at random before it refutes: a round of probes, in which most accusations
    are taken back by themselves."""
    accusers_max: int = 16_384
    """Accusers remembered: as many as peers."""
    refuted_burst: float = 64.0
    """Accusations, a count, that may be refuted before an accuser is not believed: half of a hundred nodes, cut off and heard
    again before every accuser has taken back what it said."""
    refuted_per_s: float = 1.0 / 30.0
    """Such accusations forgiven per second: a liar past its credit disturbs one peer for two seconds in thirty."""
    subjects_max: int = 128
    """Peers that one verdict names: the bound of the record."""


@dataclass(frozen=True, slots=True)
class Doubted:
    """Enough others hold the peer for silent."""

    peer: RecordKey


@dataclass(frozen=True, slots=True)
class Cleared:
    """The peer is doubted no more: accusations were taken back, it refuted them, or (`heard` is false) they merely ran out."""

    peer: RecordKey
    heard: bool


@dataclass(frozen=True, slots=True)
class TellVerdict:
    """Publish a verdict that names these peers with the incarnations that fell silent; none takes back all that was said."""

    accused: tuple[tuple[RecordKey, int], ...]


@dataclass(frozen=True, slots=True)
class Refute:
    """Publish a card with a greater incarnation: others hold this node for silent."""


@dataclass(frozen=True, slots=True)
class _Credit:
    """How many accusations of a peer may still be refuted, as it was at a time in monotonic seconds."""

    left: float
    at: float


@dataclass(frozen=True, slots=True)
class _Finding:
    """One peer that this node does not hear: when it says so, and how many others' voices make its own needless."""

    incarnation: int
    speak_at: float
    voices_enough: int


Output = Doubted | Cleared | TellVerdict | Refute

_TELL, _REFUTE = "tell", "refute"


class Suspicion:
    """The machine; see the module's docstring."""

    def __init__(
        self, config: SuspicionConfig, own: RecordKey, luck: Luck, incarnation_of: Callable[[RecordKey], int | None]
    ) -> None:
        """Starts with nobody accused.

        Args:
            config: bounds and intervals.
            own: this node.
            luck: for the waits.
            incarnation_of: the newest incarnation known of a peer, this node included; None for a stranger.
        """
        self._config = config
        self._own = own
        self._luck = luck
        self._incarnation_of = incarnation_of
        self._named: dict[RecordKey, tuple[tuple[RecordKey, int], ...]] = {}  # by accuser: whom its newest verdict names
        self._accusers: dict[RecordKey, dict[RecordKey, int]] = {}  # by subject: who accuses which incarnation
        self._credits: dict[RecordKey, _Credit] = {}  # of accusers that were refuted, the longest ago first
        self._mine: dict[RecordKey, _Finding] = {}  # whom this node holds for silent itself
        self._past: dict[RecordKey, tuple[int, float]] = {}  # who was accused and forgotten: the incarnation, and until when
        self._told: tuple[tuple[RecordKey, int], ...] = ()
        self._took_back = False  # since the last verdict
        self._told_at = float("-inf")
        self._doubted: set[RecordKey] = set()
        self._timers: TimerQueue[str] = TimerQueue()
        self._outputs: deque[Output] = deque()
        self.outputs = self._outputs  # for who drains several machines at once

    # What others say

    def handle_verdict(self, accuser: RecordKey, accused: Iterable[tuple[RecordKey, int]], now: float) -> None:
        """Takes the newest verdict of a node in place of its earlier ones."""
        self._replace_verdict(accuser, accused, now, heard=True)

    def handle_expired(self, accuser: RecordKey, now: float) -> None:
        """Learns that the newest verdict of a node has run out, or that the node was forgotten with it."""
        self._replace_verdict(accuser, (), now, heard=False)

    def _replace_verdict(self, accuser: RecordKey, accused: Iterable[tuple[RecordKey, int]], now: float, *, heard: bool) -> None:
        if accuser == self._own or (accuser not in self._named and len(self._named) >= self._config.accusers_max):
            return
        before = self._named.pop(accuser, ())
        believed = self._credit_of(accuser, now) >= 1.0
        named = tuple(
            (subject, incarnation)
            for subject, incarnation in tuple(accused)[: self._config.subjects_max]
            if incarnation >= (self._incarnation_of(subject) or 0) and (believed or (subject, incarnation) in before)
        )
        if named:
            self._named[accuser] = named
        for subject, _ in before:
            voices = self._accusers.get(subject, {})
            voices.pop(accuser, None)
            if not voices:
                self._accusers.pop(subject, None)
        for subject, incarnation in named:
            self._accusers.setdefault(subject, {})[accuser] = incarnation
        for subject in dict.fromkeys(subject for subject, _ in (*before, *named)):
            self._judge(subject, now, heard=heard)

    def handle_incarnation(self, peer: RecordKey, now: float) -> None:
        """Learns that a newer card of a peer is known; what was said against an earlier incarnation is void."""
        finding, past = self._mine.get(peer), self._past.get(peer)
        mine = finding.incarnation if finding is not None else past[0] if past is not None else None
        if mine is not None and (self._incarnation_of(peer) or 0) > mine:
            self._mine.pop(peer, None)
            self._past.pop(peer, None)
            self._take_back(peer, now)
        if peer in self._accusers:
            self._refute_accusers(peer, now)
            self._judge(peer, now, heard=True)

    # What this node finds itself

    def accuse(self, peer: RecordKey, now: float, *, watched: bool = True) -> None:
        """Holds a peer for silent from now on, and says so unless enough others do.

        Args:
            peer: who is silent.
            now: monotonic seconds.
            watched: whether the link to the peer belongs to the mesh; others who watch it come first otherwise.
        """
        config = self._config
        incarnation = self._incarnation_of(peer)
        if incarnation is None or peer in self._mine or len(self._mine) >= config.subjects_max:
            return
        if watched:
            wait_s, enough = self._luck.uniform(0.0, config.hold_back_s), config.voices_max
        else:
            wait_s = self._luck.uniform(config.hold_back_idle_s / 2, config.hold_back_idle_s)
            enough = config.confirmations
        self._mine[peer] = _Finding(incarnation, now + wait_s, enough)
        self._tell_at(now + wait_s)

    def acquit(self, peer: RecordKey, now: float) -> None:
        """Hears a peer again: takes back what was said. Who was forgotten has to refute that to be known again."""
        if self._mine.pop(peer, None) is not None:
            self._take_back(peer, now)

    def handle_forgotten(self, peer: RecordKey, now: float) -> None:
        """Has no more to say of a peer that stayed silent; what was said is not taken back, it runs out."""
        finding = self._mine.pop(peer, None)
        if finding is not None and any(subject == peer for subject, _ in self._told):
            self._past = {other: past for other, past in self._past.items() if now < past[1]}
            self._past[peer] = (finding.incarnation, now + self._config.past_s)

    def handle_forgotten_self(self, now: float) -> None:
        """Hears a record of an earlier life of this node: a verdict of that life may still be believed, and is replaced.

        Each such record may show a greater number than the verdict that replaced the one before, which it would outlast.
        """
        self._took_back = True
        self._tell_soon(now)

    def voices(self, peer: RecordKey) -> int:
        """How many others accuse the newest incarnation of a peer; any incarnation where no card of it is known.

        An accusation of an incarnation that nobody has shown yet waits for it: a liar could never be refuted otherwise.
        """
        accusers = self._accusers.get(peer)
        if accusers is None:
            return 0
        newest = self._incarnation_of(peer)
        return sum(newest is None or incarnation == newest for incarnation in accusers.values())

    def is_doubted(self, peer: RecordKey) -> bool:
        """Whether enough others hold the peer for silent."""
        return peer in self._doubted

    # Time and outputs

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        return self._timers.next_due()

    def handle_timer(self, now: float) -> None:
        """Publishes the verdict or the refutation that is due."""
        while (due := self._timers.pop_due(now)) is not None:
            if due[0] == _TELL:
                self._tell(now)
            elif self.voices(self._own) >= self._config.confirmations:
                self._outputs.append(Refute())

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        return self._outputs.popleft() if self._outputs else None

    # Helpers

    def _refute_accusers(self, subject: RecordKey, now: float) -> None:
        """Forgets what was said of earlier incarnations of a peer, at the cost of who said it."""
        newest = self._incarnation_of(subject) or 0
        voices = self._accusers[subject]
        for accuser in [accuser for accuser, incarnation in voices.items() if incarnation < newest]:
            del voices[accuser]
            credit = _Credit(self._credit_of(accuser, now) - 1.0, now)
            self._credits.pop(accuser, None)
            self._credits[accuser] = credit
            if len(self._credits) > self._config.accusers_max:
                del self._credits[next(iter(self._credits))]
        if not voices:
            del self._accusers[subject]

    def _credit_of(self, accuser: RecordKey, now: float) -> float:
        """How many accusations of a node may still be refuted before it is not believed for a while."""
        credit = self._credits.get(accuser)
        if credit is None:
            return self._config.refuted_burst
        return min(self._config.refuted_burst, credit.left + (now - credit.at) * self._config.refuted_per_s)

    def _judge(self, subject: RecordKey, now: float, *, heard: bool) -> None:
        enough = self.voices(subject) >= self._config.confirmations
        if subject == self._own:
            if enough and self._timers.due_of(_REFUTE) is None:
                self._timers.set(_REFUTE, now + self._luck.uniform(self._config.refute_min_s, self._config.refute_max_s))
        elif enough and subject not in self._doubted:
            self._doubted.add(subject)
            self._outputs.append(Doubted(subject))
        elif not enough and subject in self._doubted:
            self._doubted.discard(subject)
            self._outputs.append(Cleared(subject, heard))
            if subject in self._mine:  # a voice that was saved is needed now
                self._tell_at(now + self._luck.uniform(0.0, self._config.hold_back_s))

    def _take_back(self, peer: RecordKey, now: float) -> None:
        if any(subject == peer for subject, _ in self._told):
            self._took_back = True
            self._tell_soon(now)

    def _tell_soon(self, now: float) -> None:
        """Publishes a changed verdict now, or as soon as the last one is old enough."""
        if now >= self._told_at + self._config.tell_interval_s:
            self._tell(now)
        else:
            self._tell_at(now)

    def _tell_at(self, when: float) -> None:
        due = max(when, self._told_at + self._config.tell_interval_s)
        known = self._timers.due_of(_TELL)
        if known is None or due < known:
            self._timers.set(_TELL, due)

    def _tell(self, now: float) -> None:
        """Says whom this node holds for silent, where that is news or runs out; whom many others accuse is left out at first."""
        told_before = dict(self._told)
        named = [
            (subject, finding.incarnation)
            for subject, finding in self._mine.items()
            if subject in told_before or (now >= finding.speak_at and self.voices(subject) < finding.voices_enough)
        ]
        past = [(subject, incarnation) for subject, (incarnation, until) in self._past.items() if now < until]
        accused = tuple(sorted([*named, *past][: self._config.subjects_max]))
        is_news = any(item not in self._told for item in accused)
        if is_news or self._took_back or (named and now >= self._told_at + self._config.renew_s):
            self._told, self._told_at, self._took_back = accused, now, False
            self._outputs.append(TellVerdict(accused))
            if named:
                self._tell_at(now + self._config.renew_s)
        held_back = [finding.speak_at for finding in self._mine.values() if finding.speak_at > now]
        if held_back:
            self._tell_at(min(held_back))
