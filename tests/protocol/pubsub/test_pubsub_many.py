"""Many routers: everybody gets each message once, few copies travel, and links that lose much are made up for by gossip."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pubsub_world import CONFIG, IDENTITIES, TOPIC, World

from protocol.pubsub import Judgement, Version, sign_message

MESSAGES = 20


def messages_of(world, number):
    authors = world.luck.choices(range(len(world.peers)), k=number)
    return [(world.peers[who], sign_message(IDENTITIES[who], b"card", turn + 1, TOPIC)) for turn, who in enumerate(authors)]


@pytest.mark.parametrize("version", list(Version))
def test_everybody_gets_each_message_once_by_few_copies(version):
    world = World(40, seed=3, version=version)
    world.connect_at_random(6)  # about 12 connections each
    world.run(5.0)
    degrees = [len(router.mesh(TOPIC)) for router in world.routers.values()]
    assert min(degrees) >= CONFIG.degree_min
    assert max(degrees) <= CONFIG.degree_max
    world.copies = 0
    sent = messages_of(world, MESSAGES)
    for who, message in sent:
        world.publish(who, message)
        world.run(1.0)
    world.run(5.0)
    everything = sorted(message.id for _, message in sent)
    assert all(sorted(got) == everything for got in world.got.values())
    per_delivery = world.copies / (MESSAGES * 39)
    assert 1.0 < per_delivery < sum(degrees) / len(degrees)  # 6.4 of 7.1: nobody sends a message back to where it came from
    assert world.misbehaved == []


def test_a_message_goes_round_when_a_third_of_everything_is_lost():
    world = World(40, seed=5, loss=0.33)
    world.connect_at_random(6)
    world.run(10.0)
    sent = messages_of(world, MESSAGES)
    for who, message in sent:
        world.publish(who, message)
        world.run(0.5)
    world.run(8.0)
    delivered = sum(len(set(got)) for got in world.got.values())
    assert delivered >= 0.999 * MESSAGES * 40


def test_who_brings_what_is_rejected_is_left_out_by_everybody():
    world = World(20, seed=7)
    world.connect_at_random(19)
    world.run(3.0)
    liar = world.peers[0]
    world.judge = lambda peer_id, message: Judgement.REJECT if message.data == b"bad" else Judgement.ACCEPT
    for turn in range(6):
        world.publish(liar, sign_message(IDENTITIES[0], b"bad", turn + 1, TOPIC))
        world.run(1.0)
    world.run(2.0)
    for peer, router in world.routers.items():
        if peer != liar:
            assert router.scores.score(liar) < CONFIG.score.graylist_threshold
            assert liar not in router.mesh(TOPIC)
            assert len(router.mesh(TOPIC)) >= CONFIG.degree_min
    good = sign_message(IDENTITIES[0], b"good", 100, TOPIC)
    world.publish(liar, good)
    world.run(2.0)
    assert all(good.id not in got for peer, got in world.got.items() if peer != liar)


def test_meshes_mend_when_half_of_the_peers_go():
    world = World(30, seed=9)
    world.connect_at_random(8)
    world.run(3.0)
    gone = world.peers[:15]
    for one, other in list(world.links):
        if one in gone or other in gone:
            world.disconnect(one, other)
    world.run(3.0)
    sender = 20
    message = sign_message(IDENTITIES[sender], b"card", 1, TOPIC)
    world.publish(world.peers[sender], message)
    world.run(5.0)
    assert all(world.got[peer] == [message.id] for peer in world.peers[15:])


class Meshes(RuleBasedStateMachine):
    """Connections that come and go, messages, loss: nothing comes twice, nothing is invented, bounds hold, and calm heals."""

    @initialize(seed=st.integers(0, 2**16), loss=st.sampled_from([0.0, 0.2]))
    def begin(self, seed, loss):
        self.world = World(10, seed, loss=loss)
        self.numbers = dict.fromkeys(range(10), 0)
        self.sent = {}
        self.world.connect_at_random(2)

    @rule(one=st.integers(0, 9), other=st.integers(0, 9))
    def connect(self, one, other):
        self.world.connect(self.world.peers[one], self.world.peers[other])

    @rule(one=st.integers(0, 9), other=st.integers(0, 9))
    def disconnect(self, one, other):
        peers = self.world.peers
        if {(peers[one], peers[other]), (peers[other], peers[one])} & self.world.links:
            self.world.disconnect(peers[one], peers[other])

    @rule(who=st.integers(0, 9), size=st.sampled_from([4, 2000]))
    def publish(self, who, size):
        self.numbers[who] += 1
        message = sign_message(IDENTITIES[who], bytes(size), self.numbers[who], TOPIC)
        self.sent[message.id] = message
        self.world.publish(self.world.peers[who], message)

    @rule(seconds=st.sampled_from([0.05, 1.0, 3.0, 70.0]))
    def pass_time(self, seconds):
        self.world.run(seconds)

    @rule()
    def heal(self):
        """All are connected and nothing is lost: what is published now reaches everybody once links may be asked for again."""
        self.world.loss = 0.0
        peers = self.world.peers
        for place, one in enumerate(peers):
            for other in peers[place + 1 :]:
                self.world.connect(one, other)
        self.world.run(130.0)
        self.publish(0, 4)
        self.world.run(5.0)
        newest = list(self.sent)[-1]
        assert all(newest in got for got in self.world.got.values())

    @invariant()
    def nothing_comes_twice_within_two_minutes_or_is_invented(self):
        for got in self.world.got.values():
            assert len(got) == len(set(got))
            assert set(got) <= set(self.sent)

    @invariant()
    def bounds_hold(self):
        assert self.world.misbehaved == []
        for peer, router in self.world.routers.items():
            connected = {other for link in self.world.links if peer in link for other in link} - {peer}
            assert set(router.peers()) == connected
            assert set(router.mesh(TOPIC)) <= connected


TestMeshes = Meshes.TestCase
TestMeshes.settings = settings(
    max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
