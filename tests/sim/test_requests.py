"""Requests on virtual time: answered, refused, moved on, cancelled; the promises hold under faults and planted bugs are found."""

import numpy as np
import pytest

from protocol.errors import ErrorCode
from protocol.forwarding import Ended, Forwarding, Outcome, State
from protocol.inference import Failed
from protocol.membership import MembershipConfig
from protocol.node import Node, NodeConfig
from protocol.routing import RoutingConfig
from sim.checks import CheckFailedError
from sim.engines import EngineConfig
from sim.faults import install, names_of, plan, split
from sim.network import Line, Matrix
from sim.promises import Promises
from sim.requests import Requests
from sim.run import Run, Settings
from sim.world import World

MODEL = EngineConfig("m", slots=2, first_token_s=0.1, tokens_per_s=50.0)


def mesh(engines, seed=1, formed_s=5.0, make_node=Node):
    world = World(seed, Line(0.01))
    world.make_node = make_node
    requests = Requests(world)
    processes = []
    for engine in engines:
        known = [processes[0].address] if processes else []
        processes.append(requests.add((engine,) if engine else (), bootstrap=known))
    Promises(requests)
    world.run(formed_s)
    return world, requests, processes


def test_a_request_is_answered_by_the_nearest_able_peer_and_the_result_says_how() -> None:
    world, requests, processes = mesh([None, None, MODEL, None, MODEL])
    ask = requests.ask(processes[0], "m", 40)
    world.run(8.0)
    assert ask.answered
    assert ask.tokens == 40
    assert ask.attempts == 1
    assert ask.answered_by == processes[2].peer_id
    assert ask.answered_at_first
    path_s = 2 * world.network.delays.one_way_s(0, 2)
    assert path_s + 0.05 < ask.first_s < path_s + 0.2
    assert ask.predicted_s == pytest.approx(ask.first_s, rel=0.5)
    assert 0.6 < ask.ended_at - ask.asked_at - ask.first_s < 1.1  # 39 tokens at about 50 a second


def test_a_node_that_serves_the_model_itself_answers_without_a_stream() -> None:
    world, requests, processes = mesh([MODEL, MODEL])
    ask = requests.ask(processes[0], "m", 3)
    sent = processes[1].bytes_sent
    world.run(5.3)
    assert ask.answered_by == processes[0].peer_id
    assert ask.answered
    assert processes[1].bytes_sent - sent < 2000  # gossip only


def test_an_answer_that_is_not_streamed_comes_at_once_and_whole() -> None:
    world, requests, processes = mesh([None, MODEL])
    replies = []
    requests.ask_watchers.append(lambda ask, reply: replies.append((world.now, type(reply).__name__)))
    ask = requests.ask(processes[0], "m", 40, stream=False)
    world.run(8.0)
    assert ask.tokens == 40
    assert len({at for at, name in replies if name in ("TextDelta", "Finished")}) == 1


def test_a_model_nobody_serves_is_refused_at_once() -> None:
    world, requests, processes = mesh([None, MODEL])
    ask = requests.ask(processes[0], "unheard-of", 3)
    world.run(5.1)
    assert isinstance(ask.end, Failed)
    assert ask.end.code is ErrorCode.MODEL_NOT_FOUND
    assert ask.first_peer is None
    assert not ask.answered_at_first


def test_a_full_queue_refuses_and_the_next_candidate_answers() -> None:
    full = EngineConfig("m", slots=1, waiting_max=0)
    world, requests, processes = mesh([None, full, full])
    asks = [requests.ask(processes[0], "m", 100) for _ in range(3)]
    world.run(12.0)
    assert [ask.answered for ask in asks].count(True) == 2
    refused = next(ask for ask in asks if not ask.answered)
    assert refused.end.code is ErrorCode.OVERLOADED
    assert refused.attempts == 2


def test_requests_wait_for_a_slot_in_order_of_arrival() -> None:
    world, requests, processes = mesh([EngineConfig("m", slots=1, spread=0.0)])
    asks = [requests.ask(processes[0], "m", 1) for _ in range(4)]
    world.run(8.0)
    assert [round(ask.first_s, 6) for ask in asks] == [0.1, 0.2, 0.3, 0.4]
    assert asks[3].end.timing.queue_s == pytest.approx(0.3)


def test_load_is_told_to_the_core() -> None:
    world, requests, processes = mesh([None, EngineConfig("m", slots=3)])
    for _ in range(3):  # a free slot less is no news; that none is left is
        requests.ask(processes[0], "m", 200)
    world.run(6.5)
    beat = processes[0].node.peer(processes[1].peer_id, world.now).beat
    assert (beat.loads[0].slots, beat.loads[0].running) == (3, 3)


def test_a_peer_that_dies_before_the_first_token_is_replaced_within_the_deadline() -> None:
    world, requests, processes = mesh([None, EngineConfig("m", first_token_s=1.0), EngineConfig("m", first_token_s=1.0)])
    ask = requests.ask(processes[0], "m", 5, deadline_s=10.0)
    world.run(5.2)
    first = world.by_id[ask.first_peer]
    world.kill(first)
    world.run(16.0)
    assert ask.answered
    assert ask.attempts == 2
    assert ask.answered_by != first.peer_id
    assert not ask.answered_at_first
    assert ask.first_peer_able


def test_a_peer_that_dies_amid_its_answer_ends_the_request_with_one_error() -> None:
    world, requests, processes = mesh([None, MODEL, MODEL])
    ask = requests.ask(processes[0], "m", 500, deadline_s=20.0)
    world.run(6.0)
    assert ask.first_s is not None
    world.kill(world.by_id[ask.answered_by])
    world.run(26.0)
    assert isinstance(ask.end, Failed)
    assert ask.attempts == 1


def test_a_caller_that_leaves_frees_the_slot_at_the_far_end() -> None:
    world, requests, processes = mesh([None, MODEL])
    requests.ask(processes[0], "m", 5000, patience_s=1.0)
    engine = requests.dispatcher(processes[1]).engines["m"]
    world.run(5.9)
    assert engine.running == 1
    world.run(6.1)
    assert engine.running == 0


def test_the_deadline_ends_a_request_that_is_too_slow() -> None:
    world, requests, processes = mesh([None, MODEL])
    ask = requests.ask(processes[0], "m", 5000, deadline_s=2.0)
    world.run(8.0)
    assert ask.end.code is ErrorCode.DEADLINE_EXCEEDED
    assert ask.ended_at == pytest.approx(7.0)
    assert requests.dispatcher(processes[1]).engines["m"].running == 0


def test_a_draining_node_takes_nothing_new_finishes_and_goes() -> None:
    world, requests, processes = mesh([None, MODEL, MODEL])
    old = requests.ask(processes[0], "m", 60)
    world.run(5.5)
    leaver = world.by_id[old.answered_by]
    requests.leave(leaver)
    refused = requests.ask(leaver, "m", 1)
    new = requests.ask(processes[0], "m", 1)
    world.run(12.0)
    assert old.answered
    assert new.answered
    assert new.answered_by not in (None, leaver.peer_id)
    assert refused.end.code is ErrorCode.DRAINING
    assert not leaver.running


def test_a_peer_without_a_connection_is_dialled_once_its_dead_address_has_timed_out() -> None:
    world = World(1)
    requests = Requests(world)
    one, other = requests.add(), requests.add()
    dead = requests.add(at=1000.0)
    world.run(1.0)
    assert not one.connections
    links = []
    addresses = (dead.address.with_peer(other.peer_id), other.address)
    requests.streams.connect(one, other.peer_id, addresses, links.append)
    world.run(5.9)
    assert links == []
    world.run(6.1)
    assert links == [one.connections[other.peer_id]]
    assert links[0] is not None
    requests.streams.connect(one, dead.peer_id, (dead.address,), links.append)
    world.run(11.2)
    assert links[1] is None


def test_a_blocked_path_delays_a_stream_and_loses_nothing() -> None:
    world, requests, processes = mesh([None, MODEL])
    ask = requests.ask(processes[0], "m", 100)
    world.run(5.5)
    cut = split(frozenset({0}))
    cut.begin(world)
    world.run(6.1)
    seen = ask.end
    cut.end(world)
    world.run(10.0)
    assert seen is None
    assert ask.tokens == 100
    assert ask.answered


def test_two_seeds_differ_and_one_repeats() -> None:
    def history(seed):
        world, requests, processes = mesh([None, MODEL, MODEL, MODEL], seed)
        requests.arrive("all", 4.0, 9.0, lambda: requests.ask(processes[0], "m", 20))
        world.run(12.0)
        return world.journal.digest(), [(ask.asked_at, ask.first_s, ask.answered_by) for ask in requests.asks]

    assert history(3) == history(3)
    assert history(3) != history(4)


# The promises


def swarm(seed, make_node=Node, faults="partition,crash,isolation,loss,pause", until=26.0):
    """A mesh of five under faults, with requests of every kind all the while."""
    world = World(seed)
    world.make_node = make_node
    requests = Requests(world)
    slow = EngineConfig("m", slots=1, waiting_max=2, first_token_s=0.4, tokens_per_s=30.0)
    for index in range(5):
        requests.add((slow,) if index else (), bootstrap=[world.processes[0].address] if index else [])
    promises = Promises(requests)
    install(world, plan(world, names_of(faults), 5.0, 18.0))
    luck = world.streams.of("callers")

    def ask():
        process = luck.choice(world.working())
        hops, patience_s = luck.choice((1, 2)), luck.choice((None, None, None, 1.0))
        tokens, stream = luck.randint(1, 40), luck.random() < 0.7
        requests.ask(process, "m", tokens, deadline_s=luck.uniform(0.5, 4.0), hops=hops, stream=stream, patience_s=patience_s)

    def hang_up():
        process = luck.choice(world.working())
        if process.connections:
            world.hang_up(process, luck.choice(list(process.connections)), ErrorCode.DUPLICATE)

    requests.arrive("callers", 5.0, until - 5.0, ask)
    world.at(5.0, lambda: requests.arrive("hang-ups", 1.0, 18.0, hang_up))
    try:
        world.run(until)
    except CheckFailedError as error:
        return str(error), requests, promises
    return "", requests, promises


def test_the_promises_hold_under_faults() -> None:
    failures, answered, retried, looked_at = [], 0, 0, 0
    for seed in range(4):
        failure, requests, promises = swarm(seed)
        failures += [failure] if failure else []
        answered += sum(ask.answered for ask in requests.asks)
        retried += sum(ask.attempts > 1 for ask in requests.asks)
        looked_at += promises.looked_at
    assert failures == []
    assert answered > 150
    assert retried > 20
    assert looked_at > 200


class KeepsFailuresToItself(Forwarding):
    """A planted bug: nobody is told of a request that has failed for good."""

    def next_output(self):
        output = super().next_output()
        while isinstance(output, Ended) and output.outcome is Outcome.FAILED:
            output = super().next_output()
        return output


class RetriesAfterOutput(Forwarding):
    """A planted bug: a broken answer is asked for again elsewhere, though the caller has the half of one."""

    def handle_failed(self, request_id, peer, code, message, now):
        request = self._current(request_id, peer)
        if request is not None and request.state is State.STREAMING and self._may_move_on(request, now):
            request.state = State.TRYING
        super().handle_failed(request_id, peer, code, message, now)


class AsksTheSameAgain(Forwarding):
    """A planted bug: the peer that failed is asked once more."""

    def _move_on(self, request_id, request, now):
        request.candidates.appendleft(request.peer)
        super()._move_on(request_id, request, now)


def with_forwarding(kind):
    def make_node(config, identity, luck, sequencer):
        node = Node(config, identity, luck, sequencer)
        node.forwarding.__class__ = kind  # in place: the node holds it under more than one name
        return node

    return make_node


@pytest.mark.parametrize(
    ("kind", "found"),
    [(KeepsFailuresToItself, {"I3"}), (RetriesAfterOutput, {"I10", "I4"}), (AsksTheSameAgain, {"I10"})],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_planted_bug_is_found_within_a_few_seeds(kind, found) -> None:
    for seed in range(6):
        failure, _, _ = swarm(seed, with_forwarding(kind))
        if failure:
            assert failure.split(":")[0] in found
            return
    raise AssertionError("not found in 6 seeds")


def test_what_the_caller_sees_of_a_second_answer_is_found_too() -> None:
    world, requests, processes = mesh([None, MODEL, MODEL], make_node=with_forwarding(RetriesAfterOutput))
    del requests.step_watchers[1:]  # the promises about work are not looked at
    ask = requests.ask(processes[0], "m", 500, deadline_s=20.0)
    world.run(6.0)
    world.hang_up(processes[0], ask.answered_by, ErrorCode.DUPLICATE)
    with pytest.raises(CheckFailedError, match=r"I4: .* got token 0 where"):
        world.run(26.0)


def test_a_run_has_requests_when_it_is_told_so() -> None:
    def result(make_node=Node):
        return Run(Settings(nodes=5, duration_s=15.0, seed=2, faults="crash,partition", requests_per_s=6.0), make_node).simulate()

    fine = result()
    assert fine.failure == ""
    assert fine.requests > 50
    assert 0.4 * fine.requests < fine.answered < fine.requests
    assert result().digest == fine.digest
    assert result(with_forwarding(KeepsFailuresToItself)).failure.startswith("I3")


def test_new_peers_get_hardly_any_requests_while_somebody_known_is_able() -> None:
    """A node that starts slowly: one peer it knows, far away; five that come later and are all nearer and faster."""
    world = World(5, Line(0.01))
    requests = Requests(world)
    slow = NodeConfig(routing=RoutingConfig(slow_start=True))
    asking = requests.add((), config=slow)
    fast = EngineConfig("m", slots=8, first_token_s=0.01, tokens_per_s=500.0)
    late = [requests.add((fast,), bootstrap=[asking.address], at=40.0) for _ in range(5)]
    known = requests.add((EngineConfig("m", slots=8, first_token_s=0.05),), bootstrap=[asking.address])
    Promises(requests)
    first = [_ask_at(world, requests, asking, 3.0 + number) for number in range(25)]
    later = [_ask_at(world, requests, asking, 50.0 + number / 4) for number in range(400)]
    world.run(160.0)
    assert {ask().answered_by for ask in first} == {known.peer_id}
    assert all(ask().answered for ask in later)
    of_new = sum(ask().answered_by != known.peer_id for ask in later)
    assert 0 < of_new <= 12, "a hundredth of them, and luck"
    world.kill(known)
    world.run(175.0)
    after = [_ask_at(world, requests, asking, 180.0 + number / 4) for number in range(40)]
    world.run(200.0)
    assert {ask().answered_by for ask in after} <= {process.peer_id for process in late}
    assert all(ask().answered for ask in after)


def _ask_at(world, requests, process, at):
    """Has a request asked later; what is returned gives it once it was asked."""
    asked = []
    world.at(at, lambda: asked.append(requests.ask(process, "m", 2)))
    return lambda: asked[0]


def test_requests_of_a_mesh_where_few_are_connected_find_the_nearest_by_a_handshake() -> None:
    """Packet by packet: all are connected to a hub alone, from which both that serve are as far; one of them is much nearer."""
    rtt_ms = np.array([[0, 100, 100, 100], [100, 0, 60, 180], [100, 60, 0, 200], [100, 180, 200, 0]], dtype=float)
    few = NodeConfig(membership=MembershipConfig(small_mesh=0), ranking_min_s=1e6)
    found = []
    for seed in range(4):
        world = World(seed, Matrix(rtt_ms))
        requests = Requests(world)
        hub = requests.add(config=few)
        asker, near, far = (requests.add(engines, bootstrap=[hub.address], config=few) for engines in ((), (MODEL,), (MODEL,)))
        Promises(requests)
        world.run(10.0)
        assert list(asker.connections) == [hub.peer_id]
        asks = [requests.ask(asker, "m", 5) for _ in range(2)]
        world.run(15.0)
        assert all(ask.answered and ask.attempts == 1 for ask in asks)
        assert set(asker.connections) == {hub.peer_id, near.peer_id, far.peer_id}
        found += [(ask.answered_by == near.peer_id, ask.first_s) for ask in asks]
        again = requests.ask(asker, "m", 5)
        world.run(20.0)
        assert again.answered_by == near.peer_id
        assert again.first_s == pytest.approx(0.06 + 0.1, abs=0.05)  # no handshake any more
    assert [is_near for is_near, _ in found] == [True] * 8
    assert all(first_s == pytest.approx(2 * 0.06 + 0.1, abs=0.05) for _, first_s in found)  # as if it had been known before
