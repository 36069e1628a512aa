"""py-libp2p and js-libp2p subscribe to a network's cards at running nodes, and verify them with their own code."""

import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from foreign import ENVIRONMENT, HERE, Foreign, Implementation

sys.path.insert(0, str(Path(__file__).parents[1] / "mesh" / "nodes"))
from mesh_nodes import MeshNode, PlannedEngine, Start, eventually, heartbeats, introduced

pytestmark = pytest.mark.interop

TOPIC = "isochrone/test/cards"
SCRIPTS = ENVIRONMENT / "js"
PY = Implementation("py-libp2p", [ENVIRONMENT / "bin" / "python", HERE / "python" / "py_subscriber.py"], {})
JS = Implementation("js-libp2p", [ENVIRONMENT / "bin" / "interop-node", SCRIPTS / "js_subscriber.mjs"], {})
WAIT_S = 15.0


@pytest.fixture(params=[PY, JS], ids=lambda implementation: implementation.name)
def program(request):
    implementation = request.param
    if not implementation.is_installed:
        pytest.fail(f"{implementation.command[0]} is missing: run `make test-interop`, which installs it")
    shutil.copy(HERE / "js" / "js_subscriber.mjs", SCRIPTS)  # a module of Node.js finds packages beside itself alone
    running = Foreign(implementation)
    yield running
    running.stop()


@pytest.fixture
def start(nursery, tmp_path, engine):
    return Start(nursery, tmp_path, (engine,))


class Reader:
    """A subscriber of another implementation and what it was told."""

    def __init__(self, talk):
        self.ask = talk.ask
        self._talk = talk

    @property
    def cards(self):
        """The messages that the library delivered, which means that it has verified their signatures, and that are cards."""
        return [event for event in self._talk.events if event["event"] == "message" and event["is_card"]]

    def cards_of(self, node: MeshNode):
        return [card for card in self.cards if card["from"] == node.name]

    async def subscribed_at(self, *nodes: MeshNode):
        """Subscribe, and wait until the nodes have the subscriber in their meshes."""
        await self.ask("subscribe", topic=TOPIC)
        await eventually(lambda: all(router_of(node).mesh(TOPIC) for node in nodes), WAIT_S)


@asynccontextmanager
async def reading(program, *nodes: MeshNode):
    async with program.talking() as talk:
        reader = Reader(talk)
        for node in nodes:
            await reader.ask("dial", address=str(node.address))
        yield reader


def router_of(node: MeshNode):
    return node.service.node.strangers.router


@pytest.mark.parametrize("dialled_by", ["them", "us"])
async def test_a_subscriber_gets_the_cards_of_a_node_and_of_one_behind_it(program, start, dialled_by):
    bootstrap = [] if dialled_by == "them" else [program.address]
    node = await start(PlannedEngine(), join=tuple(Seen(address) for address in bootstrap))
    async with reading(program, *([node] if dialled_by == "them" else [])) as reader:
        await reader.subscribed_at(node)
        await eventually(lambda: reader.cards_of(node), WAIT_S)
        behind = await start(PlannedEngine(), join=(node,))
        await introduced(node, behind)
        await eventually(lambda: reader.cards_of(behind), WAIT_S)
        for card in reader.cards:
            assert card["topics"] == [TOPIC]
            held = node.service.node.table.get(behind.peer_id, "card") if card in reader.cards_of(behind) else None
            assert held is None or card["seqno"] <= held.sequence
        assert program.peer_id not in node.service.node.membership.connected()


class Seen:
    """An address to join by, in the place of a node."""

    def __init__(self, address):
        self.address = address


async def test_two_nodes_give_a_subscriber_one_copy_of_each_card(program, start):
    one = await start(PlannedEngine())
    other = await start(PlannedEngine(), join=(one,))
    await introduced(one, other)
    async with reading(program, one, other) as reader:
        await reader.subscribed_at(one, other)
        third = await start(PlannedEngine(), join=(one,))
        await introduced(one, other, third)
        await eventually(lambda: all(reader.cards_of(node) for node in (one, other, third)), WAIT_S)
        await heartbeats(one, 3)  # another copy would have come by gossip by then
        ids = [(card["from"], card["seqno"]) for card in reader.cards]
        assert len(ids) == len(set(ids))


async def test_what_is_no_card_is_rejected_until_nothing_is_heard(program, start):
    node = await start(PlannedEngine())
    async with reading(program, node) as reader:
        await reader.subscribed_at(node)
        scores, config = router_of(node).scores, node.service.node.config.strangers.pubsub.score
        await eventually(lambda: scores.score(program.peer_id) > 0.0, WAIT_S)
        await reader.ask("publish", topic=TOPIC, hex="deadbeef")
        await eventually(lambda: scores.score(program.peer_id) < -100.0, WAIT_S)
        await eventually(lambda: program.peer_id not in router_of(node).mesh(TOPIC), WAIT_S)
        before = scores.score(program.peer_id)
        await heartbeats(node, 4)  # it offers the message by gossip for three: it is known, not asked for, and counts once
        assert before - 1.0 < scores.score(program.peer_id) < before + 5.0
        for number in range(5):
            await reader.ask("publish", topic=TOPIC, hex=f"deadbeef{number:02x}")
        if (
            program.implementation is JS
        ):  # it goes on to send its own messages to all subscribers; py-libp2p has none left in its mesh
            await eventually(lambda: scores.score(program.peer_id) < config.graylist_threshold, WAIT_S)
        assert node.faults() == {}
        assert program.peer_id in node.service.transport.connections


async def test_nodes_that_share_only_a_subscriber_find_one_another(program, start):
    one = await start(PlannedEngine())
    other = await start(PlannedEngine())
    async with reading(program, one, other) as reader:
        await reader.subscribed_at(one, other)
        await introduced(one, other)
        assert one.faults() == other.faults() == {}
