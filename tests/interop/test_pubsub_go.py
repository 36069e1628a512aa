"""go-libp2p-pubsub, in its daemon, subscribes to a network's cards at running nodes; it verifies each message before it tells."""

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from go_daemon import BINARY, GoDaemon

from protocol.encoding import FrameDecoder
from protocol.identity import public_key_of, verify_signature
from protocol.libp2p import protobuf
from protocol.pubsub.messages import PubsubMessage
from protocol.records.envelope import RECORD_DOMAIN, SIGNATURE_BYTES

sys.path.insert(0, str(Path(__file__).parents[1] / "mesh" / "nodes"))
from mesh_nodes import PlannedEngine, Start, eventually, heartbeats, introduced

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

TOPIC = "isochrone/test/cards"
WAIT_S = 15.0

# Request types and field numbers of the control protocol (libp2p/go-libp2p-daemon, pb/p2pd.proto).
_PUBSUB, _PUBLISH, _SUBSCRIBE = 8, 2, 3
_TYPE, _PUBSUB_BODY = 1, 8
_MESSAGE_FIELDS = {1: "author", 2: "data", 3: "seqno", 5: "signature", 6: "key"}


class GoSubscriber(GoDaemon):
    """A daemon with gossipsub, and the messages that it has told."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number, "-pubsub", "-pubsubRouter", "gossipsub")
        self.messages: list[PubsubMessage] = []

    async def subscribe(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        """Tells messages of the topic until cancelled."""
        body = protobuf.encode_uint(1, _SUBSCRIBE) + protobuf.encode_text(2, TOPIC)
        decoder = FrameDecoder(100_000)
        async with await trio.open_unix_socket(self._socket) as control:
            await self._call(control, protobuf.encode_uint(_TYPE, _PUBSUB) + protobuf.encode_bytes(_PUBSUB_BODY, body))
            task_status.started()
            while data := await control.receive_some():
                decoder.receive(data)
                while (frame := decoder.next_frame()) is not None:
                    fields = {
                        _MESSAGE_FIELDS[number]: value
                        for number, value in protobuf.read_fields(frame, 64)
                        if number in _MESSAGE_FIELDS
                    }
                    self.messages.append(PubsubMessage(topic=TOPIC, **fields))

    async def publish(self, data: bytes) -> None:
        """Has the daemon publish data of its own."""
        body = protobuf.encode_uint(1, _PUBLISH) + protobuf.encode_text(2, TOPIC) + protobuf.encode_bytes(3, data)
        await self._ask(protobuf.encode_uint(_TYPE, _PUBSUB) + protobuf.encode_bytes(_PUBSUB_BODY, body))

    def cards_of(self, node):
        return [message for message in self.messages if message.author == node.peer_id and is_card(message)]


def is_card(message: PubsubMessage) -> bool:
    signature, signed = message.data[:SIGNATURE_BYTES], message.data[SIGNATURE_BYTES:]
    return verify_signature(public_key_of(message.author), signature, RECORD_DOMAIN + signed)


@pytest.fixture
def go(tmp_path):
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is missing: run `make test-interop`, which installs it")
    folder = tmp_path / "go"
    folder.mkdir()
    daemon = GoSubscriber(folder, 98)
    yield daemon
    daemon.stop()


@pytest.fixture
def start(nursery, tmp_path, engine):
    return Start(nursery, tmp_path, (engine,))


@asynccontextmanager
async def subscribed(go: GoSubscriber, *nodes):
    for node in nodes:
        await go.connect(node.address)
    async with trio.open_nursery() as nursery:
        await nursery.start(go.subscribe)
        await eventually(lambda: all(node.service.node.strangers.router.mesh(TOPIC) for node in nodes), WAIT_S)
        yield
        nursery.cancel_scope.cancel()


async def test_go_gets_the_cards_of_a_node_and_of_one_behind_it(go, start):
    node = await start(PlannedEngine())
    async with subscribed(go, node):
        await eventually(lambda: go.cards_of(node), WAIT_S)
        behind = await start(PlannedEngine(), join=(node,))
        await introduced(node, behind)
        await eventually(lambda: go.cards_of(behind), WAIT_S)
        assert go.identity.peer_id not in node.service.node.membership.connected()


async def test_two_nodes_give_go_one_copy_of_each_card(go, start):
    one = await start(PlannedEngine())
    other = await start(PlannedEngine(), join=(one,))
    await introduced(one, other)
    async with subscribed(go, one, other):
        third = await start(PlannedEngine(), join=(one,))
        await introduced(one, other, third)
        await eventually(lambda: all(go.cards_of(node) for node in (one, other, third)), WAIT_S)
        await heartbeats(one, 3)  # another copy would have come by gossip by then
        ids = [message.id for message in go.messages]
        assert len(ids) == len(set(ids))


async def test_what_go_publishes_that_is_no_card_is_rejected(go, start):
    node = await start(PlannedEngine())
    scores = node.service.node.strangers.router.scores
    async with subscribed(go, node):
        await eventually(lambda: scores.score(go.identity.peer_id) > 0.0, WAIT_S)
        await go.publish(b"no card")
        await eventually(lambda: scores.score(go.identity.peer_id) < -100.0, WAIT_S)
        assert go.identity.peer_id in node.service.transport.connections
        assert node.faults() == {}


async def test_nodes_that_share_only_go_find_one_another(go, start):
    one = await start(PlannedEngine())
    other = await start(PlannedEngine())
    async with subscribed(go, one, other):
        await introduced(one, other)
