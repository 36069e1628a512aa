"""Bugs that are planted in the core, one of each kind, each found by the check that is there for it within a few seeds.

A bug is planted where a slip would be made: a method of a machine that does less than it should, or a core that does more.
Without the bug the same seed holds, so that it is the bug that is found.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest

from protocol import gossip, membership
from protocol.announcer import AnnouncerConfig
from protocol.coordinates import CoordinateConfig
from protocol.distances import DistanceConfig
from protocol.edges import EdgeConfig
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.forwarding import ForwardingConfig
from protocol.gossip import GossipConfig
from protocol.gossip.audits import AuditConfig
from protocol.gossip.overlay import Overlay
from protocol.gossip.score import ScoreConfig as GossipScoreConfig
from protocol.membership import Membership, MembershipConfig
from protocol.node import Node, NodeConfig
from protocol.node.config import RelayConfig
from protocol.node.ring import RingConfig
from protocol.node.strangers import StrangersConfig
from protocol.probe import Probe, ProbeConfig
from protocol.pubsub import PubsubConfig, ScoreConfig
from protocol.records import RecordConfig, Sequencer
from protocol.routing import RoutingConfig
from protocol.services import ServiceConfig
from protocol.suspicion import Suspicion, SuspicionConfig
from protocol.table import PeerTable, TableConfig
from sim.process import MakeNode
from sim.run import Run, Settings

HEAL_S_MAX = 15.0  # enough for three nodes, and a quarter of what a run is given
SEEDS_MAX = 5  # of the 100 within which a bug must be found
PLAIN = NodeConfig()
BRIEF = replace(
    PLAIN,
    announcer=AnnouncerConfig(card_lifetime_s=3.0, edges_lifetime_s=3.0, edges_interval_s=1.0),
    gossip=GossipConfig(expire_s=1.0),
    table=TableConfig(records=RecordConfig(skew_s=1.0)),
)  # records that expire while a test runs
STEADY = replace(
    PLAIN,
    announcer=AnnouncerConfig(card_lifetime_s=600.0, moves_wait_s=600.0),
    gossip=GossipConfig(expire_s=0.5),
)  # what expires is dropped while a wrong clock lasts, and new cards do not make it good
SETTLED = replace(PLAIN, probe=ProbeConfig(settle_s=ProbeConfig().idle_interval_s))  # as connections are that are minutes old
CROWDED = replace(
    PLAIN, table=TableConfig(peers_max=3, evictable_after_s=0.5)
)  # too small a table, from which peers are driven out
SMALL = replace(
    PLAIN,
    distances=DistanceConfig(peers_max=16, edges_max=16, measured_max=64, paths_max=32),
    table=TableConfig(peers_max=16, tombstones_max=64, records=RecordConfig(values_max=256)),
    gossip=GossipConfig(
        records_debt_max=100,
        exchanges_debt_max=100,
        bytes_debt_max=100,
        wants_max=64,
        refused_max=64,
        peers_max=16,
        direct_entries_max=64,
        history_max=64,
        scores=GossipScoreConfig(retained_max=64),
        audits=AuditConfig(pending_max=64),
    ),
    membership=MembershipConfig(peers_max=64, connections_max=64, open_max=16),
    suspicion=SuspicionConfig(accusers_max=64, subjects_max=16),
    probe=ProbeConfig(peers_max=16, remembered_max=64),
    coordinates=CoordinateConfig(peers_max=64),
    forwarding=ForwardingConfig(requests_max=64, seen_max=64),
    routing=RoutingConfig(service=ServiceConfig(entries_max=64)),
    relays=RelayConfig(edges_max=64, failed_max=64),
    edges=EdgeConfig(peers_max=16, edges_max=4),
    ring=RingConfig(peers_max=8, sample_max=2),
    strangers=StrangersConfig(
        pubsub=PubsubConfig(
            history_max=64,
            seen_max=64,
            ids_asked_max=64,
            ids_told_max=64,
            idontwant_ids_max=64,
            topics_max=64,
            messages_debt_max=64,
            control_debt_max=64,
            score=ScoreConfig(retained_max=64),
        )
    ),
)


@dataclass(frozen=True)
class Story:
    """In what a bug shows."""

    faults: str
    config: NodeConfig = PLAIN
    nodes: int = 4
    duration_s: float = 8.0
    first_seed: int = 1  # from which on it is looked for: a later one where the first ones choose something else

    def failure(self, seed: int, make_node: MakeNode = Node) -> str:
        """What the checks say of one seed."""
        return Run(Settings(self.nodes, self.duration_s, seed, self.faults, "line"), make_node, self.config).simulate().failure


@lru_cache
def failure_without_bug(story: Story, seed: int) -> str:
    return story.failure(seed)


Plant = Callable[[pytest.MonkeyPatch], MakeNode]
"""Plants a bug and says how a core with it is made."""


def believes_any_signature(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr("protocol.records.envelope.verify_signature", lambda key, signature, signed: True)
    return Node


def takes_any_time(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr("protocol.records.envelope.check_network_and_time", lambda header, network_id, wall_s, config: None)
    return Node


def takes_older_records(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(PeerTable, "sequence_of", lambda self, key: 0)
    return Node


def drops_tombstones(patch: pytest.MonkeyPatch) -> MakeNode:
    drop = PeerTable._drop

    def drops_all(self, place):
        record = drop(self, place)
        self._tombstones.clear()
        return record

    patch.setattr(PeerTable, "_drop", drops_all)
    return Node


def never_expires(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(PeerTable, "expire", lambda self, wall_s: [])
    return Node


def forgets_to_bound_its_table(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(PeerTable, "_make_room", lambda self, now, wall_s: ())
    return Node


class KeepsEverything(Node):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.kept = []

    def handle_datagram(self, peer_id, payload, received_at, now):
        self.kept.append(payload)
        super().handle_datagram(peer_id, payload, received_at, now)

    def handle_message(self, peer_id, payload, now):
        self.kept.append(payload)
        super().handle_message(peer_id, payload, now)


class PassesOnWhatItDidNotVerify(Node):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.passed = set()

    def handle_message(self, peer_id, payload, now):
        super().handle_message(peer_id, payload, now)
        if payload[1] == 1 and payload not in self.passed:  # records
            self.passed.add(payload)
            others = [other for other in self.membership.connected() if other != peer_id]
            self._outputs.extend(gossip.Send(other, payload) for other in others[:1])


class CountsFromOneAgain(Node):
    def __init__(self, config, identity, luck, _sequencer):
        super().__init__(config, identity, luck, Sequencer(0))


class NeverDialsAgain(Node):
    gave_up = False

    def next_output(self):
        output = super().next_output()
        while self.gave_up and isinstance(output, membership.Connect):
            output = super().next_output()
        self.gave_up = self.gave_up or isinstance(output, membership.PeerLeft)
        return output


class TellsOfEveryConnection(Node):
    def handle_connected(self, peer_id, now, target=None, origin=None):
        super().handle_connected(peer_id, now, target, origin)
        if self.membership.is_connected(peer_id):
            self._outputs.append(membership.PeerJoined(peer_id))


def blames_what_it_does_not_know(patch: pytest.MonkeyPatch) -> MakeNode:
    decode = gossip.reader.decode_message

    def strict(payload):
        message = decode(payload)
        if message is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "unknown")
        return message

    patch.setattr("protocol.gossip.reader.decode_message", strict)
    return Node


def suspects_during_its_own_stall(patch: pytest.MonkeyPatch) -> MakeNode:
    judge = Probe._judge

    def doubts_since_it_was_due(self, peer, state, now):
        if state.doubt_at is None and now >= self._expected_at(state):
            state.doubt_at = self._expected_at(state)
        judge(self, peer, state, now)

    patch.setattr(Probe, "_judge", doubts_since_it_was_due)
    patch.setattr(Probe, "_excuse_everybody", lambda self, lateness_s, now: None)
    return Node


def never_suspects(patch: pytest.MonkeyPatch) -> MakeNode:
    def hears_from_everybody(self, peer, state, now):
        state.heard_at = now
        state.unanswered_at = state.doubt_at = None

    patch.setattr(Probe, "_judge", hears_from_everybody)
    return Node


def watches_nobody(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(Probe, "handle_watched", lambda self, peer, now, *, watched: None)
    return Node


def declares_dead_during_its_own_stall(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(Membership, "handle_stall", lambda self, lateness_s, now: None)
    return Node


def believes_one_voice(patch: pytest.MonkeyPatch) -> MakeNode:
    voices = Suspicion.voices
    patch.setattr(Suspicion, "voices", lambda self, peer: 2 * voices(self, peer))
    return Node


def never_takes_back(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(Suspicion, "acquit", lambda self, peer, now: None)
    return Node


def remembers_what_expired(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(PeerTable, "readmit_expired", lambda self: None)
    return Node


def never_grafts(patch: pytest.MonkeyPatch) -> MakeNode:
    patch.setattr(Overlay, "handle_connected", lambda self, peer_id, now, *, far, dialled: False)
    patch.setattr(Overlay, "_candidates", lambda self, now: [])
    return Node


def made_as(make_node: MakeNode) -> Plant:
    return lambda patch: make_node


PLANTED = {
    "believes any signature": (believes_any_signature, "I1", Story("hostile-forged")),
    "takes records of any time": (takes_any_time, "I1", Story("hostile-future")),
    "takes older records": (takes_older_records, "I1", Story("hostile-replayed")),
    "drops tombstones": (drops_tombstones, "I1", Story("hostile-replayed", CROWDED, nodes=6)),
    "passes on what it did not verify": (made_as(PassesOnWhatItDidNotVerify), "I1", Story("hostile-forged")),
    "counts from one again": (made_as(CountsFromOneAgain), "I1", Story("crash", first_seed=2)),
    "never dials again": (made_as(NeverDialsAgain), "I2", Story("crash", nodes=3, duration_s=20.0)),
    "never suspects": (never_suspects, "I2", Story("death", nodes=3, duration_s=6.0)),
    "suspects during its own stall": (suspects_during_its_own_stall, "I5", Story("pause", nodes=3, duration_s=12.0)),
    "watches nobody": (watches_nobody, "I2", Story("death", SETTLED, nodes=3, duration_s=6.0)),
    "declares dead during its own stall": (
        declares_dead_during_its_own_stall,
        "I5",
        Story("death,pause", nodes=3, duration_s=40.0),
    ),
    "believes one voice": (believes_one_voice, "I5", Story("isolation", nodes=3, duration_s=12.0)),
    "never takes back": (never_takes_back, "I2", Story("isolation", nodes=3, duration_s=12.0)),
    "remembers what expired by a wrong clock": (
        remembers_what_expired,
        "I2",
        Story("clock-jump", STEADY, nodes=3, duration_s=12.0),
    ),
    "never grafts": (never_grafts, "I2", Story("loss", nodes=3, duration_s=6.0)),
    "blames what it does not know": (
        blames_what_it_does_not_know,
        "I6",
        Story("new-version", nodes=3, duration_s=6.0, first_seed=3),
    ),
    "tells twice": (made_as(TellsOfEveryConnection), "I6", Story("crash")),
    "never expires": (never_expires, "I9", Story("death", BRIEF, nodes=3, duration_s=40.0)),
    "forgets to bound its table": (
        forgets_to_bound_its_table,
        "I9",
        Story("hostile-sybil", SMALL, nodes=3, duration_s=6.0),
    ),
    "keeps everything": (made_as(KeepsEverything), "I9", Story("loss", SMALL, duration_s=60.0)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, invariant, story = PLANTED[name]
    monkeypatch.setattr("sim.run.HEAL_S_MAX", HEAL_S_MAX)
    make_node = plant(monkeypatch)
    found = (
        seed for seed in range(story.first_seed, story.first_seed + SEEDS_MAX) if invariant in story.failure(seed, make_node)
    )
    seed = next(found, None)
    assert seed is not None, f"{name} was not found in {SEEDS_MAX} seeds"
    monkeypatch.undo()
    assert invariant not in failure_without_bug(story, seed), "the check fails without the bug"
