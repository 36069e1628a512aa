"""py-libp2p as a subscriber: gossipsub with StrictSign; takes commands as JSON lines, answers in JSON lines, tells of messages.

It imports nothing of Isochrone: a card is checked with py-libp2p's own keys, as chapter 3 of the specification says.
Commands: `dial` (address), `subscribe` (topic), `publish` (topic, hex), `mesh` (topic), `connected`.
"""

import json
import logging
import os
import sys

import trio
from libp2p import new_host
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

RECORD_DOMAIN = b"isochrone-record-v1:"
SIGNATURE_BYTES = 64
WAIT_S = 20.0


def tell(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def is_card(author, data):
    """Whether an envelope's signature is its author's, checked with the key that stands in the author's peer id."""
    if len(data) < SIGNATURE_BYTES:
        return False
    return ID(author).extract_public_key().verify(RECORD_DOMAIN + data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES])


class Commands:
    """What the test asks for, by name."""

    def __init__(self, host, pubsub, nursery):
        self.host = host
        self.pubsub = pubsub
        self.nursery = nursery

    async def dial(self, address):
        await self.host.connect(info_from_p2p_addr(Multiaddr(address)))

    async def subscribe(self, topic):
        subscription = await self.pubsub.subscribe(topic)
        self.nursery.start_soon(self._read, subscription)

    async def _read(self, subscription):
        while True:
            message = await subscription.get()
            tell(
                {
                    "event": "message",
                    "from": str(ID(message.from_id)),
                    "seqno": int.from_bytes(message.seqno, "big"),
                    "topics": list(message.topicIDs),
                    "data": message.data.hex(),
                    "is_card": is_card(message.from_id, message.data),
                }
            )

    async def publish(self, topic, hex):  # noqa: A002  (the name of the command's field)
        await self.pubsub.publish(topic, bytes.fromhex(hex))

    async def mesh(self, topic):
        return {"peers": [str(peer) for peer in self.pubsub.router.mesh.get(topic, ())]}

    async def connected(self):
        return {"peers": [str(peer) for peer in self.host.get_connected_peers()]}


async def answer(commands, line):
    asked = json.loads(line)
    number, name = asked.pop("id"), asked.pop("do")
    try:
        with trio.fail_after(WAIT_S):
            told = await getattr(commands, name)(**asked)
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is the answer)
        tell({"id": number, "ok": False, "error": f"{type(error).__name__}: {error}"})
    else:
        tell({"id": number, "ok": True, **(told or {})})


async def main():
    listen = [Multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")]
    host = new_host(listen_addrs=listen, enable_quic=True)
    router = GossipSub([PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID], 6, 4, 12, heartbeat_interval=1)
    pubsub = Pubsub(host, router, strict_signing=True)
    async with (
        host.run(listen),
        background_trio_service(pubsub),
        background_trio_service(router),
        trio.open_nursery() as nursery,
    ):
        await pubsub.wait_until_ready()
        tell({"event": "ready", "peer_id": str(host.get_id()), "addresses": [str(address) for address in host.get_addrs()]})
        commands = Commands(host, pubsub, nursery)
        kept = b""
        async for data in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
            *whole, kept = (kept + data).split(b"\n")
            for line in whole:
                nursery.start_soon(answer, commands, line)
        nursery.cancel_scope.cancel()


logging.disable(logging.CRITICAL)
trio.run(main)
