"""go-libp2p, as far as its daemon shows it, and our transport over QUIC on loopback, with both of our engines."""

import os

import pytest
from foreign import ForeignError, pattern
from go_daemon import BINARY, GoDaemon
from meeting import Ours, running, until

from mesh.transport import ConnectionLost
from protocol.errors import ErrorCode
from protocol.identity import Identity
from protocol.libp2p.ping import PING_BYTES, PING_PROTOCOL

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

MIB = 1024 * 1024
OTHER = Identity.from_seed(bytes(32)).peer_id


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is missing: run `make test-interop`, which installs it")
    daemon = GoDaemon(tmp_path_factory.mktemp("go"), 99)
    yield daemon
    daemon.stop()


async def connected(go: GoDaemon, ours: Ours, direction: str):
    """Connect both, from either side, and return our end."""
    if direction == "they dial":
        await go.connect(ours.address)
        await until(lambda: ours.connected)
        return ours.connected[0]
    connection = await ours.transport.dial((await go.addresses())[0])
    while ours.peer_id not in await go.peers():
        pass
    return connection


async def test_tls_proves_both_peers_to_each_other(go, engine, direction):
    ours = Ours(engine)
    async with running(ours):
        connection = await connected(go, ours, direction)
        assert connection.peer_id == go.identity.peer_id
        assert ours.peer_id in await go.peers()


async def test_another_peer_id_is_refused_by_both(go, engine):
    ours = Ours(engine)
    async with running(ours):
        with pytest.raises(ForeignError):
            await go.connect(ours.address.with_peer(OTHER))
        with pytest.raises(ConnectionLost) as caught:
            await ours.transport.dial((await go.addresses())[0].with_peer(OTHER))
        assert caught.value.code == ErrorCode.WRONG_PEER


async def test_we_identify_them_and_verify_their_record(go, engine, direction):
    ours = Ours(engine)
    async with running(ours):
        connection = await connected(go, ours, direction)
        said = await connection.identify()
        assert PING_PROTOCOL in said.protocols
        assert connection.description.record is not None
        assert connection.description.record.peer_id == go.identity.peer_id


async def test_a_thousand_pings_each_way(go, pairing):
    ours = Ours(pairing[0])
    async with running(ours):
        connection = await connected(go, ours, pairing[1])
        for _ in range(1000):
            assert 0 < await connection.ping() < 10
        async with await go.open_stream(ours.peer_id, PING_PROTOCOL) as stream:
            for _ in range(1000):
                sent, heard = os.urandom(PING_BYTES), b""
                await stream.send_all(sent)
                while len(heard) < PING_BYTES:
                    heard += await stream.receive_some(PING_BYTES - len(heard))
                assert heard == sent


async def test_eight_mebibytes_there_and_back(go, pairing):
    """In pieces, since the daemon gives the whole stream up when its user ends one side of the control connection."""
    ours = Ours(pairing[0])
    async with running(ours):
        await connected(go, ours, pairing[1])
        async with await go.open_stream(ours.peer_id, "/interop/echo/1") as stream:
            sent = pattern(8 * MIB)
            heard = bytearray()
            for start in range(0, len(sent), MIB // 4):
                await stream.send_all(sent[start : start + MIB // 4])
                while len(heard) < start + MIB // 4:
                    heard += await stream.receive_some()
            assert heard == sent


async def test_a_protocol_that_we_do_not_speak_is_refused(go, engine):
    ours = Ours(engine)
    async with running(ours):
        connection = await connected(go, ours, "they dial")
        with pytest.raises(ForeignError):
            await go.open_stream(ours.peer_id, "/nobody/speaks/1")
        assert await connection.ping() > 0
