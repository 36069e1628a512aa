"""The state tables of the specification, driven: each row is tried on this node's own machine, from its state, with its event."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.transfer import Action, Giver, Gives, Giving, Receiver, Takes, Taking
from protocol.gossip.events import GossipConfig
from protocol.gossip.overlay import Overlay
from protocol.gossip.score import PeerScores
from protocol.identity import Identity
from protocol.inference import Accepted, AnswerOrder, Finished, TextDelta
from protocol.libp2p.multistream import Listener, MultistreamConfig
from protocol.membership import Connect, Membership, MembershipConfig
from protocol.multiaddr import parse_multiaddr
from protocol.probe import KIND_PROBE, Probe, ProbeConfig, SendDatagram

SPEC = Path(__file__).parent.parent.parent / "docs" / "spec"
PEERS = sorted(Identity.from_seed(bytes([n]) * 32).peer_id for n in range(1, 20))
OWN, PEER, *OTHERS = PEERS


def rows(chapter: str, heading: str) -> list[tuple[str, ...]]:
    """The rows of the table under a heading."""
    text = (SPEC / chapter).read_text()
    section = re.search(rf"^### {heading}$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    table = re.search(r"(?:^\|.*\n)+", section[1], re.MULTILINE)
    assert table is not None, heading
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table[0].splitlines()[2:]]


def cases(chapter: str, heading: str) -> list[object]:
    found = rows(chapter, heading)
    assert len(found) > 5
    return [pytest.param(*row, id=f"{row[0]}: {row[1]}") for row in found]


# A negotiation, as the side sees it that accepted the stream.

SPOKEN, UNSPOKEN = "/spoken/1.0.0", "/unspoken/1.0.0"
HEADER = "/multistream/1.0.0"
LIMIT = MultistreamConfig().proposals_max
SAID = {
    "the header": HEADER,
    "another message": "hello",
    "a protocol it speaks": SPOKEN,
    "a protocol it does not speak": UNSPOKEN,
    "such a protocol, past the limit": UNSPOKEN,
}


def line(text: str) -> bytes:
    return encode_frame(text.encode() + b"\n")


@pytest.mark.parametrize(("state", "event", "following", "answer"), cases("02-transport.md", "States of a negotiation"))
def test_negotiation(state: str, event: str, following: str, answer: str) -> None:
    listener = Listener(lambda protocol_id: protocol_id == SPOKEN)
    if state == "open":
        listener.receive_data(line(HEADER))
    for _ in range(LIMIT if "past the limit" in event else 0):
        listener.receive_data(line(UNSPOKEN))
    listener.data_to_send()
    if answer == "reset":
        with pytest.raises(RemoteProtocolError):
            listener.receive_eof() if event == "the end" else listener.receive_data(line(SAID[event]))
        assert following == "over"
        return
    listener.receive_data(line(SAID[event]))
    assert (listener.agreed is not None) == (following == "agreed")
    assert listener.data_to_send() == line({"the header": HEADER, "the protocol": SPOKEN, "`na`": "na"}[answer])


# A link of the mesh, as one end sees it.


class Link:
    """One link of an overlay whose other links are to `OTHERS`."""

    def __init__(self) -> None:
        self.config = GossipConfig()
        self.overlay = Overlay(self.config, random.Random(1), PeerScores(self.config.scores), lambda _: True)
        self.now = 0.0
        self.sent: list[str] = []
        self.fill(self.config.degree)
        self.overlay.handle_connected(PEER, self.now, far=False)
        assert PEER not in self.overlay

    def fill(self, count: int) -> None:
        """Let others hold links until there are so many."""
        for peer in OTHERS:
            if len(self.overlay.members) < count and peer not in self.overlay:
                self.overlay.handle_connected(peer, self.now, far=True)
                self.overlay.handle_graft(peer, self.now)

    def empty(self) -> None:
        """Let the others' connections end, so that links are few."""
        for peer in OTHERS:
            self.overlay.handle_disconnected(peer)

    def come_to(self, state: str) -> None:
        if state in ("held", "left alone", "silent", "any"):
            assert self.overlay.handle_graft(PEER, self.now)
        if state == "left alone":
            self.overlay.handle_prune(PEER, self.now)
        if state == "silent":
            self.overlay.handle_silent(PEER)
        if state == "given back":
            self.be_chosen()
        self.sent.clear()

    def be_chosen(self) -> None:
        """Be the one link that a heartbeat gives back: the near one among far ones."""
        self.fill(self.config.degree_max)
        if PEER not in self.overlay:
            assert self.overlay.handle_graft(PEER, self.now)
        self.fill(self.config.degree_max + 1)
        while PEER in self.overlay:  # chance chooses among all where the near ones are too few
            self.sent += ["prune"] if PEER in self.overlay.heartbeat(self.now).pruned else []
            if PEER in self.overlay:
                self.fill(self.config.degree_max + 1)

    def do(self, event: str) -> None:
        match event:
            case "few links":
                self.empty()
                self.sent += ["graft"] if PEER in self.overlay.heartbeat(self.now).grafted else []
            case "a graft" | "a graft, at most D_hi held":
                self.sent += [] if self.overlay.handle_graft(PEER, self.now) else ["prune"]
            case "a graft, more than D_hi held":
                self.fill(self.config.degree_max + 1)
                self.sent += [] if self.overlay.handle_graft(PEER, self.now) else ["prune"]
            case "a prune":
                self.overlay.handle_prune(PEER, self.now)
            case "a heartbeat with more than D_hi, this one chosen":
                self.be_chosen()
            case "the peer falls silent":
                self.sent += ["prune"] if self.overlay.handle_silent(PEER) else []
            case "10 s pass":
                assert self.config.prune_backoff_s == 10.0
                self.now += 10.0
                self.overlay.heartbeat(self.now)
            case "the peer is heard":
                self.overlay.handle_heard(PEER)
            case "the connection ends":
                self.overlay.handle_disconnected(PEER)
                self.overlay.handle_connected(PEER, self.now, far=False)
            case _:
                raise AssertionError(event)

    def state(self) -> str:
        if PEER in self.overlay:
            return "held"
        if PEER in self.overlay._silent:
            return "silent"
        if self.now < self.overlay._refusing.get(PEER, self.now):
            return "given back"
        return "left alone" if self.now < self.overlay._backoff.get(PEER, self.now) else "free"


@pytest.mark.parametrize(("state", "event", "following", "sent"), cases("04-gossip.md", "States of a link"))
def test_link(state: str, event: str, following: str, sent: str) -> None:
    link = Link()
    link.come_to(state)
    assert link.state() == ("held" if state == "any" else state)
    link.do(event)
    assert link.state() == following
    assert link.sent == ([] if sent == "nothing" else [sent])


# A watched peer.


class Watched:
    def __init__(self) -> None:
        self.config = ProbeConfig()
        self.probe = Probe(self.config, random.Random(1))
        self.now = 100.0
        self.probes: list[bytes] = []
        self.probe.handle_connected(PEER, self.now)
        self.probe.handle_watched(PEER, self.now, watched=True)
        self.drain()
        self.echo()

    def drain(self) -> int:
        """Take what came out; how many probes."""
        before = len(self.probes)
        while (output := self.probe.next_output()) is not None:
            if isinstance(output, SendDatagram) and output.payload[0] == KIND_PROBE:
                self.probes.append(output.payload)
        return len(self.probes) - before

    def run(self, until: Callable[[], bool]) -> None:
        while not until():
            due = self.probe.next_timer()
            assert due is not None
            self.now = max(self.now, due)
            self.probe.handle_timer(self.now)
            self.drain()

    def echo(self) -> None:
        self.now += 0.01
        self.probe.handle_datagram(PEER, b"\x02" + self.probes[-1][1:], self.now, self.now)
        self.drain()

    def other_datagram(self) -> None:
        self.now += 0.01
        self.probe.handle_datagram(PEER, bytes((KIND_PROBE,)) + b"12345678", self.now, self.now)
        self.drain()

    def state(self) -> str:
        if str(self.probe.liveness(PEER)) == "suspected":
            return "suspected"
        return "well" if self.probe._peers[PEER].doubt_at is None else "doubt"


@pytest.mark.parametrize(("state", "event", "following", "sent"), cases("05-coordinates.md", "States of a watched peer"))
def test_watched_peer(state: str, event: str, following: str, sent: str) -> None:
    watched = Watched()
    if state != "well":
        watched.run(lambda: watched.state() == state)
    assert watched.state() == state
    before, since = len(watched.probes), watched.now
    match event:
        case "an echo":
            if state == "well":
                watched.run(lambda: len(watched.probes) > before)
            watched.echo()
        case "a probe stays without an echo" | "nothing is heard for too long" | "the time is over":
            watched.run(lambda: watched.state() != state)
        case "enough others doubt it":
            watched.probe.handle_doubt(PEER, watched.now)
            watched.drain()
        case "another datagram, a probe is without an echo" | "another datagram":
            watched.other_datagram()
        case _:
            raise AssertionError(event)
    assert watched.state() == following
    if sent == "probes, fast":  # in the time in which the peer may be suspected, half a dozen at least
        before, since = len(watched.probes), watched.now
        watched.run(lambda: watched.now >= since + watched.config.suspect_after_s or watched.state() == "suspected")
        assert len(watched.probes) - before >= 6
    elif sent.startswith("probes"):
        watched.run(lambda: len(watched.probes) > before)
        assert watched.now - since < 1.0


# An answer.

EVENTS = {"`Accepted`": Accepted(), "an output": TextDelta("x"), "`Finished` or `Failed`": Finished(), "any": TextDelta("x")}


@pytest.mark.parametrize(("state", "event", "following"), cases("06-inference.md", "States of an answer"))
def test_answer(state: str, event: str, following: str) -> None:
    order = AnswerOrder()
    for earlier in {"begun": [], "under way": [Accepted()], "ended": [Finished()]}[state]:
        order.take(earlier)
    if following == "broken":
        with pytest.raises(RemoteProtocolError):
            order.take(EVENTS[event])
    else:
        order.take(EVENTS[event])
        assert order.ended == (following == "ended")


# The standing of a peer.


class Member:
    def __init__(self) -> None:
        self.config = MembershipConfig(small_mesh=0)
        self.membership = Membership(self.config, OWN, random.Random(1))
        self.now = self.lost_at = 0.0

    def card(self, *, renewed: bool = False) -> None:
        self.membership.handle_card(PEER, (parse_multiaddr("/ip4/192.0.2.1/udp/1/quic-v1"),), self.now, renewed=renewed)

    def pass_time(self, duration_s: float) -> None:
        until = self.now + duration_s
        while (due := self.membership.next_timer()) is not None and due <= until:
            self.membership.handle_timer(due)
            while self.membership.next_output() is not None:
                pass
        self.now = until

    def come_to(self, state: str) -> None:
        if state == "unknown":
            return
        self.card()
        if state in ("alive, connected", "suspected, connected"):
            self.membership.handle_connected(PEER, self.now)
            if state.startswith("suspected"):
                self.membership.handle_suspected(PEER, self.now)
        elif state in ("suspected, not connected", "gone"):
            self.membership.handle_doubted(PEER, self.now)
            if state == "gone":
                self.pass_time(self.config.gone_after_s)
        elif state == "gone, by its silence":
            self.membership.handle_connected(PEER, self.now)
            self.membership.handle_suspected(PEER, self.now)
            self.pass_time(self.config.gone_after_s)
            self.lost_at = self.now
            self.membership.handle_disconnected(PEER, ErrorCode.IDLE, self.now)

    def do(self, event: str) -> None:
        membership, forget_s = self.membership, self.config.forget_after_s
        happen: dict[str, Callable[[], object]] = {
            "it is connected": lambda: membership.handle_connected(PEER, self.now),
            "it is connected and answers": self.connect_and_answer,
            "its card comes": self.card,
            "a card with the same incarnation": self.card,
            "the probes suspect it": lambda: membership.handle_suspected(PEER, self.now),
            "it says goodbye": lambda: membership.handle_disconnected(PEER, ErrorCode.GOODBYE, self.now),
            "the connection is lost": lambda: membership.handle_disconnected(PEER, ErrorCode.IDLE, self.now),
            "the connection is closed as surplus, its card known": self.be_surplus,
            "others doubt it": lambda: membership.handle_doubted(PEER, self.now),
            "a dial fails": self.fail_to_dial,
            "a dial fails, the first since it was connected": lambda: self.connect_and_fail_to_dial(1),
            "a second dial fails since it was connected": lambda: self.connect_and_fail_to_dial(2),
            "a record that it signed before": lambda: membership.handle_signed(PEER, self.lost_at - 0.1, self.now),
            "a record that it signed since": lambda: membership.handle_signed(PEER, self.lost_at + 0.1, self.now),
            "its card expires": lambda: membership.forget(PEER),
            "it answers": lambda: membership.handle_recovered(PEER, self.now),
            "the time is over": lambda: self.pass_time(self.config.gone_after_s),
            "the doubt is taken back": lambda: membership.handle_cleared(PEER, self.now, heard=True),
            "the accusations are taken back": lambda: membership.handle_cleared(PEER, self.now, heard=True),
            f"{forget_s:g} s pass": lambda: self.pass_time(forget_s),
        }
        happen[event]()

    def connect_and_answer(self) -> None:
        self.membership.handle_connected(PEER, self.now)
        self.membership.handle_heard(PEER, self.now)

    def be_surplus(self) -> None:
        self.now += 30.0
        self.membership.handle_disconnected(PEER, ErrorCode.SURPLUS, self.now)

    def fail_to_dial(self) -> None:
        self.membership.handle_ranking([PEER], (), self.now)
        self.membership.handle_dial_failed(PEER, self.now)

    def connect_and_fail_to_dial(self, times: int) -> None:
        self.membership.handle_connected(PEER, self.now)
        self.be_surplus()
        self.pass_time(self.config.shunned_s)
        self.membership.handle_ranking([PEER], (), self.now)
        for _ in range(times):
            while not any(isinstance(output, Connect) for output in iter(self.membership.next_output, None)):
                due = self.membership.next_timer()
                assert due is not None
                self.now = max(self.now, due)
                self.membership.handle_timer(self.now)
            self.membership.handle_dial_failed(PEER, self.now)

    def state(self) -> str:
        standing = str(self.membership.standing(PEER, self.now)[0])
        where = "connected" if self.membership.is_connected(PEER) else "not connected"
        return standing if standing in ("gone", "unknown") else f"{standing}, {where}"


@pytest.mark.parametrize(("state", "event", "following"), cases("07-membership.md", "States of a peer"))
def test_member(state: str, event: str, following: str) -> None:
    member = Member()
    member.come_to(state)
    assert member.state() == state.removesuffix(", by its silence")
    member.do(event)
    assert member.state() in (following, f"{following}, connected", f"{following}, not connected")


# The two ends of a transfer.

ACTIONS = {action.value: action for action in Action}


def actions_of(text: str) -> tuple[Action, ...]:
    return () if text == "nothing" else tuple(ACTIONS[word.strip()] for word in text.split(","))


@pytest.mark.parametrize(("state", "event", "following", "done"), cases("11-fabric.md", "States of a giver"))
def test_giver(state: str, event: str, following: str, done: str) -> None:
    giving = Giving(writes=event == "leased")
    giving.state = Giver(state)
    assert giving.handle(Gives(event)) == actions_of(done)
    assert giving.state is Giver(following)


@pytest.mark.parametrize(("state", "event", "following", "done"), cases("11-fabric.md", "States of a receiver"))
def test_receiver(state: str, event: str, following: str, done: str) -> None:
    taking = Taking(grants=False)
    taking.state = Receiver(state)
    assert taking.handle(Takes(event)) == actions_of(done)
    assert taking.state is Receiver(following)
