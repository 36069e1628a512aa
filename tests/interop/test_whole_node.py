"""Other implementations of libp2p and a whole node, started through its command line."""

import pytest
from foreign import ForeignError

from benchmarks.node_process import NodeProcess

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def node():
    with NodeProcess("--engine", "none") as process:
        yield process


async def test_a_node_is_dialled_pinged_and_identified_by_strangers(foreign, node):
    async with foreign.talking() as theirs:
        assert (await theirs.ask("dial", address=node.address))["peer_id"] == node.peer_id
        await theirs.ask("meet", peer=node.peer_id)
        await theirs.ask("ping", peer=node.peer_id, count=100)
        said = await theirs.ask("identify", peer=node.peer_id)
        assert any(protocol.startswith("/isochrone/") for protocol in said["protocols"])
        assert said["record"]["addresses"] == said["addresses"] == [node.address.partition("/p2p/")[0]]
        with pytest.raises(ForeignError):
            await theirs.ask("exchange", peer=node.peer_id, protocol="/nobody/speaks/1", bytes=10)
        await theirs.ask("ping", peer=node.peer_id, count=10)
        await theirs.ask("hang_up", peer=node.peer_id)
        assert node.process.poll() is None
