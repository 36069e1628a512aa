"""How requests and nodes end: cancelled, unread, killed, drained, started again; and who is no node of this mesh."""

import openai
import pytest
import trio
from mesh_nodes import (
    MESSAGES,
    MODEL,
    TEXT,
    WORDS,
    MeshNode,
    Plan,
    PlannedEngine,
    SlottedEngine,
    Start,
    eventually,
    introduced,
    request,
    say_and_hang,
    text_of,
)

from mesh.config import StartError
from mesh.engines.base import SlotsConfig
from mesh.store import KEY_FILE, StateError
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.messages import Entries, encode_message
from protocol.inference import Finished, TextDelta
from protocol.membership import Standing
from protocol.records import RecordKind

GONE_WITHIN_S = 3.0 + 1.5
"""A dead peer leaves the routing set within 3 s (issue); the rest is for a busy machine."""


class Flood:
    """Says more and more, and counts it."""

    def __init__(self) -> None:
        self.n_bytes = 0

    async def __call__(self, _request):
        while True:
            self.n_bytes += 4096
            yield TextDelta("x" * 4096)


class Gate:
    """Says a word, waits to be opened, and says the rest."""

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self.opened = trio.Event()

    async def __call__(self, _request):
        yield TextDelta(WORDS[0])
        self.waiting.set()
        await self.opened.wait()
        for word in WORDS[1:]:
            yield TextDelta(word)
        yield Finished(("stop",))


async def test_a_client_that_stops_frees_the_slot_on_the_other_node(start: Start) -> None:
    engine = SlottedEngine(Plan(say_and_hang), slots=SlotsConfig(1, 0))
    b = await start(engine)
    a = await start(join=(b,))
    await introduced(a, b)

    def first_word(client):
        with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
            return next(iter(stream)).choices[0].delta.content

    await a.ask(first_word)
    await eventually(lambda: engine.slots.load().running == 0)
    await eventually(lambda: a.service.node.forwarding.under_way == b.service.node.forwarding.under_way == 0)
    assert text_of(await a.chat()) == TEXT


async def test_a_client_that_never_reads_stops_the_engine_on_the_other_node(start: Start) -> None:
    """It pauses where the QUIC engine gives credit by stream, and loses its answer where one stream would hold up the others."""
    flood = Flood()
    engine = PlannedEngine(Plan(flood))
    b = await start(engine)
    a = await start(join=(b,))
    await introduced(a, b)
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"go"}]}'
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    client = trio.socket.socket()
    client.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    with client:
        await client.connect(("127.0.0.1", int(a.ready.gateway.rpartition(":")[2])))
        await trio.SocketStream(client).send_all(head.encode() + body)
        seen = -1
        with trio.fail_after(10):
            while seen != flood.n_bytes or not seen:  # until it produced nothing for a while
                seen = flood.n_bytes
                await trio.sleep(0.3)
        assert flood.n_bytes < 16 * 1024 * 1024  # socket buffers, windows of two streams and one connection
        assert text_of(await a.chat()) == TEXT  # nobody else is held up
    await eventually(lambda: engine.n_running == 0)


async def test_a_killed_node_leaves_the_routing_set_in_time(start: Start) -> None:
    b = await start(PlannedEngine())
    a = await start(join=(b,))
    await introduced(a, b)
    await b.kill()
    await eventually(lambda: not a.knows(b.peer_id), GONE_WITHIN_S)
    with pytest.raises(openai.InternalServerError) as caught:
        await a.chat()
    assert caught.value.status_code == 503  # somebody serves it, and is away
    assert caught.value.code == "unreachable"


async def test_a_node_that_is_killed_during_an_answer_costs_that_answer_alone(start: Start) -> None:
    plan = Plan(say_and_hang)
    b = await start(PlannedEngine(plan))
    c = await start(PlannedEngine(plan), join=(b,))
    a = await start(join=(b, c))
    await introduced(a, b, c)
    failures: list[openai.APIError] = []
    pieces: list[object] = []

    def stream(client):
        pieces.extend(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))

    async def ask() -> None:
        with pytest.raises(openai.APIError) as caught:
            await a.ask(stream)
        failures.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await eventually(lambda: len(pieces) > 0)  # before the first output the other node would answer
        victim, other = (b, c) if b.engines[0].n_running else (c, b)
        await victim.kill()
        await eventually(lambda: not a.knows(victim.peer_id), GONE_WITHIN_S)
        response = await a.chat()
        assert response.headers["x-mesh-node"] == other.name
    assert len(failures) == 1


async def test_a_node_that_stops_is_dropped_at_once_and_finishes_what_it_began(start: Start) -> None:
    gate = Gate()
    b = await start(PlannedEngine(Plan(gate)))
    a = await start(join=(b,))
    await introduced(a, b)
    told: list[str] = []

    def stream(client):
        for piece in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            told.extend(choice.delta.content for choice in piece.choices if choice.delta.content)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.ask, stream)
        with trio.fail_after(5):
            await gate.waiting.wait()
        b.shutdown.set()
        await eventually(lambda: any(c.reason == "draining" for c in rank_of(a)))
        with pytest.raises(openai.InternalServerError) as caught:
            await a.chat()
        assert caught.value.code == "draining"
        gate.opened.set()
    assert "".join(told) == TEXT
    with trio.fail_after(5):
        await b.ended.wait()
    await eventually(lambda: not a.knows(b.peer_id), 1.0)
    view = a.service.node.peer(b.peer_id, a.service.transport.now())
    assert (view.standing, view.why, view.connected) == (Standing.GONE, "said goodbye", False)


async def test_a_stop_loses_nothing_of_a_long_answer_to_a_peer(start: Start) -> None:
    """The answer is finished when it stands in the send buffer, which is long before it has arrived."""

    async def say_much_and_stop(_request):
        yield TextDelta("x" * 700_000)
        b.shutdown.set()
        yield Finished(("stop",))

    b = await start(PlannedEngine(Plan(say_much_and_stop)))
    a = await start(join=(b,))
    await introduced(a, b)
    async with a.service.dispatcher.submit(request(stream=True)) as answer:
        replies = [reply async for reply in answer]
    assert [type(reply) for reply in replies] == [TextDelta, Finished]
    with trio.fail_after(5):
        await b.ended.wait()


def rank_of(node: MeshNode):
    """The candidates of a request that came to `node` now."""
    return node.service.node.rank(request(), node.service.transport.now()).candidates


async def test_a_stop_lets_the_gateway_finish_its_own_answers(start: Start) -> None:
    gate = Gate()
    a = await start(PlannedEngine(Plan(gate)))
    answers = []

    async def ask() -> None:
        answers.append(text_of(await a.chat()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.fail_after(5):
            await gate.waiting.wait()
        a.shutdown.set()
        gate.opened.set()
    assert answers == [TEXT]
    with trio.fail_after(5):
        await a.ended.wait()


async def test_a_stop_waits_no_longer_than_the_grace_period(start: Start) -> None:
    a = await start(PlannedEngine(Plan(say_and_hang)), grace_s=0.3)

    def stream(client):
        for _ in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            pass

    async def ask() -> None:
        with pytest.raises((openai.APIError, openai.APIConnectionError)):
            await a.ask(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await eventually(lambda: a.engines[0].n_running == 1)
        await a.stop()
    assert a.engines[0].n_running == 0


async def test_a_node_that_starts_again_is_the_same_and_is_heard(start: Start) -> None:
    b = await start(PlannedEngine())
    a = await start(join=(b,))
    await introduced(a, b)
    before = a.service.node.table.get(b.peer_id, RecordKind.CARD)
    await b.kill()
    again = await start(PlannedEngine(model="another"), state_dir=b.config.state_dir, join=(a,))
    assert again.peer_id == b.peer_id

    def card():
        return a.service.node.table.get(b.peer_id, RecordKind.CARD)

    await eventually(lambda: card().sequence > before.sequence, 2)
    await eventually(lambda: [offer.model for offer in card().payload.models] == ["another"])
    await introduced(a, again)
    assert text_of(await a.chat(model="another")) == TEXT


async def test_a_stopped_node_finds_its_peers_again_without_being_told(start: Start) -> None:
    b = await start(PlannedEngine())
    a = await start(join=(b,))
    await introduced(a, b)
    await a.stop()
    again = await start(state_dir=a.config.state_dir)
    await introduced(again, b)


async def test_two_nodes_cannot_share_a_state_directory(start: Start) -> None:
    a = await start()
    with pytest.raises(StateError, match="another node"):
        await start(state_dir=a.config.state_dir)


async def test_a_damaged_key_stops_the_node_and_is_left_as_it_is(start: Start) -> None:
    a = await start()
    await a.stop()
    key = a.config.state_dir / KEY_FILE
    key.write_text("not a key")
    with pytest.raises(StateError, match="never replaced"):
        await start(state_dir=a.config.state_dir)
    assert key.read_text() == "not a key"


async def test_a_stranger_is_served_ping_and_identify_and_is_no_peer(start: Start) -> None:
    a = await start(PlannedEngine())
    async with start.stranger(9) as stranger:
        connection = await stranger.dial(a.address)
        assert await connection.ping() > 0
        assert "/isochrone/gossip/3.0.0" in (await connection.identify()).protocols
        await eventually(lambda: bool(a.logged("no gossip with peer")))
        assert a.service.node.peers(a.service.transport.now()) == []
        assert a.service.driver._outboxes == {}
        assert text_of(await a.chat()) == TEXT
        # A node that is told to join by a stranger's address keeps trying, and its other dials are not held up.
        b = await start(join=(a,))
        hopeful = await start(PlannedEngine(), join=(a, b))
        hopeful.service.node.add_bootstrap(stranger.addresses, hopeful.service.transport.now())
        hopeful.service.driver.settle()
        await eventually(lambda: bool(hopeful.logged("no gossip with peer")))
        await introduced(a, b, hopeful)
        assert stranger.identity.peer_id not in {view.peer_id for view in hopeful.service.node.peers(0.0)}
        under_way = hopeful.service.node.membership._under_way
        await eventually(lambda: under_way.next_due() is None)


async def test_peers_that_come_and_go_leave_nothing_behind(start: Start) -> None:
    """Each says a word of gossip and is gone, so that its last word may be read after it has left."""
    a = await start(PlannedEngine())
    driver, node = a.service.driver, a.service.node
    assert driver._nursery is not None
    n_tasks = len(driver._nursery.child_tasks)

    async def swallow(stream) -> None:
        while await stream.receive_some():
            pass

    for seed in range(10, 22):
        async with start.stranger(seed, **{GOSSIP_PROTOCOL: swallow}) as stranger:
            connection = await stranger.dial(a.address)
            stream = await connection.open_stream(GOSSIP_PROTOCOL)
            await stream.confirmed()
            await stream.send_all(encode_frame(encode_message(Entries(()))))
            await connection.close(ErrorCode.GOODBYE)
        await eventually(lambda: not a.service.transport.connections)
    await eventually(lambda: len(driver._nursery.child_tasks) == n_tasks)
    assert node.membership.connected() == []
    assert driver._outboxes == {}
    assert driver._targets == {}
    assert not a.logged("handler crashed")


async def test_nodes_of_different_networks_keep_apart(start: Start) -> None:
    b = await start(PlannedEngine(), network="theirs")
    a = await start(join=(b,), network="ours")
    await eventually(lambda: "wrong_network" in {**a.faults(), **b.faults()})
    with pytest.raises(openai.NotFoundError):
        await a.chat()
    await eventually(lambda: not a.service.transport.connections and not b.service.transport.connections)
    assert not a.knows(b.peer_id)
    assert not b.knows(a.peer_id)
    assert len(a.service.node.table) <= 3  # its own records
    assert sum({**a.faults(), **b.faults()}.values()) <= 4  # and no quarrel twice a second


async def test_a_port_that_is_taken_stops_the_start_with_a_reason(start: Start) -> None:
    a = await start()
    taken = a.service.transport.addresses[0].with_peer(None)
    refused = pytest.RaisesExc(StartError, match="choose another address with --listen")
    with pytest.RaisesGroup(refused, flatten_subgroups=True):
        await start(listen=taken)
