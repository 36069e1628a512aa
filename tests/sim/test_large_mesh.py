"""A mesh of which no node holds all, simulated: who holds what, how news gets round, who is missed, and what a liar can do."""

from dataclasses import replace

from protocol import gossip, membership, probe
from protocol.errors import ErrorCode
from protocol.gossip import GossipConfig, HorizonConfig
from protocol.gossip.messages import ScopeTold, encode_message
from protocol.inference import Failed
from protocol.membership import MembershipConfig, Standing
from protocol.node import NodeConfig
from protocol.node.searches import SearchConfig
from protocol.records import Card, ModelOffer, RecordKind
from protocol.scope import Scope
from sim.checks import Safety, concerns, unhealed
from sim.engines import EngineConfig
from sim.formed import Formation, formed
from sim.process import Process
from sim.promises import Promises
from sim.requests import Requests
from sim.world import World

SMALL = NodeConfig(
    gossip=GossipConfig(horizon=HorizonConfig(peers=12, sample_max=4, shuffle_s=10.0, shuffle_count=2)),
    membership=MembershipConfig(small_mesh=4, near_max=8, far_max=3, beyond_max=2),
    searches=SearchConfig(near_asked=6),
)
NODES = 40


def large(seed: int = 3, config: NodeConfig = SMALL) -> World:
    world = formed(Formation(NODES, seed, start_within_s=4.0, config=config), prepare=Safety)
    world.run(world.now + 5.0)
    return world


def holders(world: World, subject: Process) -> list[Process]:
    return [process for process in world.working() if subject.peer_id in process.node.table.known()]


def test_nodes_hold_what_their_scopes_cover_and_little_else() -> None:
    world = large()
    world.run(world.now + 12.0)
    assert unhealed(world) is None
    horizon = SMALL.gossip.horizon
    for process in world.processes:
        scope = process.node.gossip.scope
        assert scope is not None
        known, connected = len(process.node.table.known()), len(process.node.membership.connected())
        assert horizon.peers * (1.0 - horizon.slack) <= known - 1
        assert known - 1 <= horizon.peers * (1.0 + horizon.slack) + horizon.sample_max + connected
    held = [len(process.node.table.known()) for process in world.processes]
    assert sorted(held)[NODES // 2] < NODES // 2
    assert all(process.node.gossip.beyond() for process in world.processes)


def test_a_new_card_reaches_all_whose_scope_covers_it_within_a_few_seconds() -> None:
    world = large()
    for index in range(0, NODES, 12):
        process = world.processes[index]
        process.offers = (*process.offers, ModelOffer("new", frozenset()))
        process.node.handle_offers(process.offers, world.now)
        world.settle(process)
    world.run(world.now + 8.0)
    for index in range(0, NODES, 12):
        subject = world.processes[index]
        card = subject.node.table.get(subject.peer_id, RecordKind.CARD)
        assert card is not None
        assert isinstance(card.payload, Card)
        assert card.payload.models[-1].model == "new"
        concerned = [process for process in world.working() if process is not subject and concerns(process, card)]
        assert len(concerned) >= 4
        for process in [*concerned, *holders(world, subject)]:
            held = process.node.table.get(subject.peer_id, RecordKind.CARD)
            assert held is not None
            assert held.sequence == card.sequence or not concerns(process, card)


def test_nobody_living_is_suspected_and_the_dead_are_missed_by_those_that_knew_them() -> None:
    world = large()
    told: list[object] = []
    world.watchers.append(lambda _process, output: told.append(output))
    world.run(world.now + 8.0)
    assert not [output for output in told if isinstance(output, probe.PeerSuspected | membership.PeerGone)]
    dead = world.processes[7]
    card = dead.node.table.get(dead.peer_id, RecordKind.CARD)
    assert card is not None
    knew = [process for process in holders(world, dead) if process is not dead and concerns(process, card)]
    assert len(knew) >= 6
    world.kill(dead)
    world.run(world.now + 15.0)
    standings = {process.node.membership.standing(dead.peer_id, world.now)[0] for process in knew}
    assert Standing.ALIVE not in standings
    others = [process for process in world.working() if process is not dead]
    assert not [
        (process.index, other.index)
        for process in others
        for other in others
        if process.node.membership.standing(other.peer_id, world.now)[0] in (Standing.SUSPECTED, Standing.GONE)
    ]


def test_a_mesh_that_grows_past_the_horizon_finds_its_scopes_by_itself() -> None:
    world = World(5)
    Safety(world)
    config = replace(SMALL, ranking_max_s=10.0)
    first = world.add(config=config)
    for number in range(25):
        world.add(bootstrap=[first.address], at=0.5 * number, config=config)
    assert world.run_until(lambda: unhealed(world) is None and world.now > 60.0, 180.0, 5.0)
    scoped = [process for process in world.processes if process.node.gossip.scope is not None]
    assert len(scoped) > 20
    assert sorted(len(process.node.table.known()) for process in world.processes)[13] < 24


def test_a_model_that_nobody_near_serves_is_found_by_asking_beyond() -> None:
    made: list[Requests] = []

    def prepare(world: World) -> None:
        Safety(world)
        made.append(Requests(world))
        Promises(made[0])

    world = formed(Formation(NODES, 3, start_within_s=4.0, config=SMALL), prepare=prepare)
    requests = made[0]
    rare = requests.add((EngineConfig("rare", slots=8),), bootstrap=[world.processes[5].address], at=world.now, config=SMALL)
    world.run(world.now + 30.0)
    strangers = [process for process in world.working() if rare.peer_id not in process.node.table.known()]
    indices = [process.index for process in strangers]
    assert len(indices) > NODES // 3
    asks = [requests.ask(process, "rare", 3, deadline_s=8.0) for process in strangers]
    unheard_of = requests.ask(strangers[0], "unheard of", 3, deadline_s=8.0)
    world.run(world.now + 10.0)
    ended = [ask.ended_at is not None for ask in asks]
    answered = [ask.answered for ask in asks]
    assert all(ended)
    # eight peers are asked, each holds a third of the mesh, and much of it in common: all are answered with this seed and others
    assert sum(answered) >= 0.9 * len(answered)
    end, took_s = unheard_of.end, (unheard_of.ended_at or world.now) - unheard_of.asked_at
    assert isinstance(end, Failed)
    assert end.code is ErrorCode.MODEL_NOT_FOUND
    assert took_s < SMALL.searches.wait_s + 0.5


def test_a_liar_that_moves_its_scope_all_the_time_is_dropped_and_harms_nobody() -> None:
    world = large()
    liar = world.processes[0]
    liar.hostile = True
    blamed: list[gossip.Misbehaved] = []
    world.watchers.append(lambda _process, output: blamed.append(output) if isinstance(output, gossip.Misbehaved) else None)

    def lie(turn: int) -> None:
        message = encode_message(ScopeTold(Scope((0.001 * (turn % 50),) * 8, 60.0)))
        for peer_id in sorted(liar.connections):
            world._send_message(liar, peer_id, message)
        if turn < 150:
            world.later(liar, 0.02, lambda: lie(turn + 1))

    lie(0)
    world.run(world.now + 5.0)
    assert {output.peer_id for output in blamed} == {liar.peer_id}
    world.kill(liar)
    world.run(world.now + 10.0)
    assert unhealed(world) is None
