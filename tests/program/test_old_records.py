"""Old records and a node that is killed: what it knew before it knows after, though nobody tells it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from mesh.store import FLOORS_FILE, floors_from_text
from mesh.transport import Stream, Transport
from protocol.encoding import encode_frame
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.messages import Records, encode_message
from protocol.identity import Identity, peer_id_text
from protocol.multiaddr import parse_multiaddr
from protocol.records import Card, Hardware, RecordKind, seal
from protocol.table import record_key

ROOT = Path(__file__).parents[2]
SIGNER = Identity.from_seed(bytes([77]) * 32)
KEY = record_key(SIGNER.peer_id, RecordKind.CARD)


def card(sequence: int, age_s: float = 0.0) -> bytes:
    """A card of somebody who is not there; it is valid for an hour."""
    issued_s = time.time() - age_s
    payload = Card((), Hardware("cpu", 1, 1, 1), (), None, f"number {sequence}")
    return seal(SIGNER, "old-records", payload, sequence, issued_s, issued_s + 3600.0).envelope


class Process:
    """One node, as its user runs it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        arguments = ["--state-dir", str(state_dir), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--gateway", "127.0.0.1:0"]
        self.popen = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "node.py"),
                "up",
                "--json",
                "--engine",
                "none",
                "--open",
                "--network",
                "old-records",
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"HOME": str(state_dir), "PATH": os.environ["PATH"]},
        )
        assert self.popen.stdout is not None
        self.ready = json.loads(self.popen.stdout.readline())

    def kill(self) -> None:
        self.popen.kill()
        assert self.popen.wait(10) == -signal.SIGKILL
        assert self.popen.stdout is not None
        self.popen.stdout.close()

    async def stale(self, code: str) -> float:
        async with httpx.AsyncClient(base_url=self.ready["gateway"], trust_env=False, timeout=30) as client:
            lines = (await client.get("/metrics")).raise_for_status().text.splitlines()
        found = [line for line in lines if line.startswith(f'isochrone_records_stale_total{{code="{code}"}}')]
        return float(found[0].split()[-1]) if found else 0.0

    async def agent_of_signer(self) -> str | None:
        """What the card says that the node holds of it, None where it holds none."""
        async with httpx.AsyncClient(base_url=self.ready["gateway"], trust_env=False, timeout=30) as client:
            peers = (await client.get("/mesh/peers")).raise_for_status().json()["peers"]
        return next((peer["agent"] for peer in peers if peer["peer_id"] == peer_id_text(SIGNER.peer_id)), None)


@asynccontextmanager
async def told(process: Process, *envelopes: bytes) -> AsyncIterator[None]:
    """Tell a node records over a connection that stays for a while."""

    async def swallow(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    transport = Transport(Identity(os.urandom(32)), handlers={GOSSIP_PROTOCOL: swallow})
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, [parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")])
        connection = await transport.dial(parse_multiaddr(process.ready["addresses"][0]))
        stream = await connection.open_stream(GOSSIP_PROTOCOL)
        await stream.confirmed()
        await stream.send_all(b"".join(encode_frame(encode_message(Records((envelope,)))) for envelope in envelopes))
        yield
        await transport.aclose()


def least_kept(state_dir: Path) -> int:
    path = state_dir / FLOORS_FILE
    floors = floors_from_text(path.read_text()) if path.exists() else ()
    return next((floor.least for floor in floors if floor.key == KEY), 0)


async def test_a_killed_node_refuses_the_old_card_and_takes_the_newest(tmp_path: Path) -> None:
    first = await trio.to_thread.run_sync(Process, tmp_path)
    seventh = card(7)
    async with told(first, card(5), seventh):
        with trio.fail_after(40):
            while least_kept(tmp_path) < 7:  # noqa: ASYNC110  # another process writes it
                await trio.sleep(0.1)
    first.kill()
    assert least_kept(tmp_path) == 7
    second = await trio.to_thread.run_sync(Process, tmp_path)
    try:
        with trio.fail_after(40):
            async with told(second, card(6, 30.0), card(5, 60.0)):
                while await second.stale("old_sequence") < 2:  # noqa: ASYNC110  # another process counts it
                    await trio.sleep(0.1)
                assert await second.agent_of_signer() is None
            async with told(second, seventh, seventh):
                while await second.stale("replayed") < 1:  # noqa: ASYNC110  # it was taken, and came again
                    await trio.sleep(0.1)
                assert await second.agent_of_signer() == "number 7"
                assert await second.stale("old_sequence") == 2
    finally:
        second.kill()
