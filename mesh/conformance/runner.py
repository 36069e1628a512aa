"""Runs the cases on one node: first a look at who it is, then the cases, several at a time where they do not disturb each other.

What was found out is kept as it comes, so that a run that is broken off has lost nothing.

Spec: docs/spec/README.md, section "The conformance suite".
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import trio

from mesh.conformance import cases as _cases
from mesh.conformance.gossip import record_key, talk, withdraw
from mesh.conformance.index import Sentence, load
from mesh.conformance.peer import ScriptedPeer, Subject, proven
from mesh.conformance.registry import CASES, INSIDE, Case, NotApplicable, Unmet
from mesh.conformance.wire import Connection
from protocol.admission import delegation_bytes, network_id_of, open_shown
from protocol.errors import RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.messages import Entries, Want
from protocol.identity import peer_id_text, read_certificate
from protocol.records import Card, open_record, peek
from protocol.table import BUCKETS

TOGETHER_MAX = 6
"""Cases that run at the same time, a count: most of them wait, and the node still answers each within milliseconds."""

CASE_S_MAX = 30.0
"""Longest time of a case in seconds; one that waits for a timer of the specification has `SLOW_CASE_S_MAX`."""

SLOW_CASE_S_MAX = 150.0
"""Longest time of a slow case in seconds: twice the longest timer that one waits for."""

TRIES_MAX = 5
"""How often a case begins anew that lost a link to a node that has others, a count: the second time has a whole second."""


MEMBERS_ALONE = "the node lets members alone in: name the directory of its network, where its key lies, with --network-dir"
"""Why most cases do not run on a node of a private network."""


class Outcome(StrEnum):
    """What became of a case or of a sentence."""

    PASS = "pass"  # noqa: S105  (no password)
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"
    NOT_RUN = "not run"


class UnreachableError(Exception):
    """Nobody who could be tested answers at the address."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one case."""

    case: Case
    outcome: Outcome
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one sentence."""

    sentence: Sentence
    outcome: Outcome
    reason: str
    cases: tuple[str, ...]


def choose(only: Sequence[str]) -> list[Case]:
    """Return the cases for sentences whose ids begin with one of `only`, or all."""
    wanted = tuple(prefix.upper() for prefix in only)
    return [case for case in CASES if not wanted or any(name.startswith(wanted) for name in case.sentences)]


async def look(subject: Subject) -> None:
    """Find out who answers at the address and what it speaks; of a node that lets no stranger in, who it is alone.

    Raises:
        UnreachableError: nobody answers, or somebody else than was named.
    """
    unreachable: UnreachableError | None = None
    async with trio.open_nursery() as nursery:
        peer = ScriptedPeer(subject, nursery)
        try:
            began = trio.current_time()
            connection = await _let_in(peer)
            if connection is None:
                return
            subject.rtt_s = (trio.current_time() - began) / 2  # a handshake takes one and a half, and the node's own work
            subject.peer_id = proven(connection, time.time())
            with suppress(Unmet):
                subject.said, _ = await peer.identify(connection)
            if GOSSIP_PROTOCOL in subject.said.protocols:
                with suppress(Unmet):
                    await _read_card(peer, connection)
        except (Unmet, RemoteProtocolError) as fault:
            unreachable = UnreachableError(f"{subject.address} cannot be tested: {fault}")
        finally:
            peer.leave()
            nursery.cancel_scope.cancel()
    if unreachable is not None:
        raise unreachable
    if subject.expected not in (None, subject.peer_id):
        assert subject.expected is not None
        found, wanted = peer_id_text(subject.peer_id), peer_id_text(subject.expected)
        raise UnreachableError(f"{subject.address} is {found}, not {wanted}: wrong address or peer id")


async def _let_in(peer: ScriptedPeer) -> Connection | None:
    """A connection to the node; None where it belongs to a private network and the suite has no papers of that.

    Raises:
        Unmet: it lets nobody in, or not by these papers.
    """
    subject = peer.subject
    connection = peer.begin()
    try:
        await connection.established()
    except Unmet as unmet:
        if not connection.quic.shown.certificates:
            raise
        subject.peer_id, subject.shown = read_certificate(connection.quic.shown.certificates[0], time.time())
        if not subject.shown:
            raise
        network = network_id_of(delegation_bytes(open_shown(subject.shown).delegation).root)
        if subject.papers is not None and subject.papers.network != network:
            raise Unmet(f"a node of {subject.papers.network}, whose key was given", f"one of {network}") from unmet
        if subject.papers is not None:
            raise
        subject.is_closed, subject.network = True, network
        return None
    _, subject.shown = read_certificate(connection.quic.shown.certificates[0], time.time())
    return connection


async def _read_card(peer: ScriptedPeer, connection: Connection) -> None:
    """Ask the node for its card, which says of which network it is and what it serves.

    Raises:
        Unmet: the node does not tell it.
    """
    subject = peer.subject
    gossip = await talk(peer, connection=connection, settle=False)
    gossip.send(Want((record_key("card", subject.peer_id),)))
    await gossip.until(gossip.cards_of_node, "the card of the node")
    subject.envelope = gossip.cards_of_node()[0]
    subject.network = peek(subject.envelope).network_id
    payload = open_record(subject.envelope, subject.network, time.time()).payload
    subject.card = payload if isinstance(payload, Card) else None
    gossip.send(Entries((), tuple(range(BUCKETS))))
    await gossip.settled()
    own = {record_key(kind, subject.peer_id) for kind in ("card", "verdict")}
    subject.n_others = len(gossip.entries().keys() - own)


class Run:
    """One run of the suite over one node."""

    def __init__(self, subject: Subject, cases: Sequence[Case], *, slow: bool = False, only: Sequence[str] = ()) -> None:
        self.subject = subject
        self.cases = list(cases)
        self.only = tuple(prefix.upper() for prefix in only)
        self.results: dict[str, Result] = {}
        self.slow = slow
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.began

    async def run(self, advanced: Callable[[Result], None] = lambda _result: None) -> None:
        """Run every case; what is broken off leaves the results so far."""
        together = [case for case in self.cases if not case.alone and not case.slow]
        slots = trio.CapacityLimiter(TOGETHER_MAX)

        async def in_a_slot(case: Case) -> None:
            async with slots:
                await self._note(case, advanced)

        async with trio.open_nursery() as nursery:
            for case in together:
                nursery.start_soon(in_a_slot, case)
        for case in self.cases:
            if case.alone and not case.slow:
                await self._note(case, advanced)
        async with trio.open_nursery() as nursery:
            for case in self.cases:
                if case.slow:
                    nursery.start_soon(self._note, case, advanced)

    async def _note(self, case: Case, advanced: Callable[[Result], None]) -> None:
        if case.slow and not self.slow:
            result = Result(case, Outcome.NOT_APPLICABLE, "it waits for a long timer: run with --slow", 0.0)
        elif self.subject.is_closed and not case.uninvited:
            result = Result(case, Outcome.NOT_APPLICABLE, MEMBERS_ALONE, 0.0)
        else:
            result = await run_case(case, self.subject)
        self.results[case.name] = result
        advanced(result)

    def rows(self) -> list[Row]:
        """What became of every sentence that was chosen."""
        chosen = {case.name for case in self.cases}
        return [
            self._row(sentence, [case for case in CASES if sentence.id in case.sentences and case.name in chosen])
            for sentence in load()
            if not self.only or sentence.id.startswith(self.only)
        ]

    def _row(self, sentence: Sentence, named: list[Case]) -> Row:
        names = tuple(case.name for case in named)
        if not named:
            entry = INSIDE.get(sentence.id)
            why = f"not seen from outside: {entry.why} ({', '.join(entry.tests)})" if entry else "no case: it does not bind"
            return Row(sentence, Outcome.NOT_APPLICABLE, why, names)
        results = [self.results.get(case.name) for case in named]
        ended = [result for result in results if result is not None]
        for outcome in (Outcome.FAIL, Outcome.PASS, Outcome.NOT_APPLICABLE):
            found = [result for result in ended if result.outcome is outcome]
            if found and (outcome is not Outcome.PASS or len(ended) == len(results)):
                reasons = [f"{result.case.name}: {result.reason}" for result in found if result.reason]
                return Row(sentence, outcome, "; ".join(reasons), names)
        return Row(sentence, Outcome.NOT_RUN, "the run was broken off", names)


async def run_case(case: Case, subject: Subject) -> Result:
    """Run one case and say what became of it; whatever it began has ended then.

    A member of a mesh has other links, and gives back those that it has too many of (ISO-GOS-021) within a second: a case that
    lost one so begins anew, just after the heartbeat that took it.
    """
    began = trio.current_time()
    for _ in range(TRIES_MAX):
        outcome, reason, disturbed = await _tried(case, subject)
        if not (disturbed and outcome is Outcome.FAIL):
            break
    else:
        outcome, reason = Outcome.NOT_APPLICABLE, f"the node has links enough, and gave back those of the case ({reason})"
    return Result(case, outcome, reason, trio.current_time() - began)


async def _tried(case: Case, subject: Subject) -> tuple[Outcome, str, bool]:
    """Run one case once; what became of it, why, and whether it lost a link that it may have needed."""
    outcome, reason, disturbed = Outcome.PASS, "", False
    async with trio.open_nursery() as nursery:
        peer = ScriptedPeer(subject, nursery)
        try:
            with trio.fail_after(SLOW_CASE_S_MAX if case.slow else CASE_S_MAX):
                await case.run(peer)
        except Unmet as unmet:
            outcome, reason = Outcome.FAIL, str(unmet)
        except NotApplicable as why:
            outcome, reason = Outcome.NOT_APPLICABLE, str(why)
        except RemoteProtocolError as fault:
            outcome, reason = Outcome.FAIL, f"expected bytes that decode; seen: {fault}"
        except trio.TooSlowError:
            outcome, reason = Outcome.FAIL, "the case did not come to an end"
        except Exception as fault:  # noqa: BLE001  (a case that breaks must not take the other results with it)
            outcome, reason = Outcome.FAIL, f"the case itself broke: {type(fault).__name__}: {fault}"
        finally:
            await withdraw(peer)
            with suppress(Unmet):
                disturbed = any(link.lost_its_link for link in peer.links)
            peer.leave()
            nursery.cancel_scope.cancel()
    return outcome, reason, disturbed


assert _cases  # importing the package registers its cases
