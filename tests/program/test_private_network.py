"""A private network as its owner meets it: five processes with nothing set up, who is let in, and who is not."""

import json
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import httpx
import pytest
import trio

from mesh.admission.commands import node_identity
from mesh.store import read_key
from mesh.testnet import runner
from mesh.testnet.topology import topology_from_mapping
from mesh.transport import ConnectionLost, Door, Transport
from protocol.admission import Certificate, Delegation, encode_member, network_id_of, sign_certificate, sign_delegation
from protocol.errors import ErrorCode
from protocol.identity import Identity
from protocol.multiaddr import Multiaddr, parse_multiaddr

ROOT = Path(__file__).parent.parent.parent
ASKED = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
READY_S = 60
LOOK_S = 0.05  # between two looks, which would keep a core from the processes
DAY_S = 86_400
FIVE = topology_from_mapping(
    {
        "nodes": [{"name": name, "engines": ["echo" if name == "a" else "none"]} for name in "abcde"],
        "rtt_ms": [[0 if i == j else 8 for j in range(5)] for i in range(5)],
    }
)


async def told(gateway: str, path: str) -> dict:
    async with httpx.AsyncClient(base_url=gateway, trust_env=False, timeout=30) as client:
        return (await client.get(path)).raise_for_status().json()


async def answered_by(gateway: str) -> str:
    async with httpx.AsyncClient(base_url=gateway, trust_env=False, timeout=30) as client:
        response = (await client.post("/v1/chat/completions", json=ASKED)).raise_for_status()
    return response.headers["x-mesh-node"]


def run(*arguments: str, home: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "node.py"), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def lone(identity: Identity, proof: bytes):
    """A bare transport that shows `proof` and lets everybody in."""
    transport = Transport(identity, door=Door(lambda: proof, lambda _peer, _proof: False))
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        try:
            yield transport
        finally:
            await transport.aclose()
            nursery.cancel_scope.cancel()


async def refused(address: Multiaddr, identity: Identity, proof: bytes) -> ErrorCode:
    """With which code a node refuses a peer."""
    async with lone(identity, proof) as caller:
        with pytest.raises(ConnectionLost) as caught:
            await caller.dial(address)
    return ErrorCode(caught.value.code)


def proof_of(root: Identity, peer: Identity, start_s: int, end_s: int) -> bytes:
    now_s = int(time.time())
    issuer = Identity.from_seed(bytes([3]) * 32)
    delegation = sign_delegation(
        root, Delegation(root.public_key, issuer.peer_id, ("admit",), (), now_s - DAY_S, now_s + DAY_S, 1)
    )
    network_id, since_s = network_id_of(root.public_key), now_s + start_s
    certificate = Certificate(network_id, peer.peer_id, "", (), since_s, since_s, now_s + end_s, 1)
    return encode_member(sign_certificate(issuer, certificate), delegation)


async def test_five_processes_answer_for_each_other_and_nobody_else_gets_in(tmp_path: Path) -> None:
    sixth = Identity.from_seed(bytes([6]) * 32)
    async with runner.testnet(FIVE, folder=tmp_path) as net:
        a, *others = net.nodes
        assert {await answered_by(node.gateway) for node in others} == {a.peer_id}

        root = read_key(tmp_path / "network" / "root.pem")
        host, port = a.real  # past the link emulator, which passes on what its nodes say
        address = parse_multiaddr(f"/ip4/{host}/udp/{port}/quic-v1/p2p/{a.peer_id}")
        before = await told(a.gateway, "/mesh/peers")
        assert len(before["peers"]) == 4
        for proof, code in (
            (b"", ErrorCode.NOT_ADMITTED),
            (proof_of(root, sixth, -200, -100), ErrorCode.EXPIRED),
            (proof_of(Identity.from_seed(bytes([9]) * 32), sixth, -200, DAY_S), ErrorCode.WRONG_NETWORK),
        ):
            assert await refused(address, sixth, proof) is code
        after = await told(a.gateway, "/mesh/peers")
        assert {row["peer_id"] for row in after["peers"]} == {row["peer_id"] for row in before["peers"]}
        assert (await told(a.gateway, "/mesh/status"))["connections"] == 4

        b = others[0]
        home = tmp_path / "home"
        state = str(a.folder / "state")
        run("network", "revoke", b.peer_id, "--state-dir", state, "--network-dir", str(tmp_path / "network"), home=home)
        with trio.fail_after(15):
            for node in (a, *others[1:]):
                while b.peer_id in str(await told(node.gateway, "/mesh/peers")):  # noqa: ASYNC110  # another process tells
                    await trio.sleep(LOOK_S)
        with trio.fail_after(15):
            while (await told(b.gateway, "/mesh/status"))["connections"]:  # noqa: ASYNC110  # another process tells
                await trio.sleep(LOOK_S)
        key = node_identity(b.folder / "state")
        assert await refused(address, key, proof_of(root, key, -200, 900)) is ErrorCode.REVOKED
        assert {await answered_by(node.gateway) for node in others[1:]} == {a.peer_id}


class Process:
    """One `isochrone up` of a user."""

    def __init__(self, home: Path, *flags: str) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        command = [sys.executable, str(ROOT / "node.py"), "up", "--json", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]
        command += ["--gateway", "127.0.0.1:0", *flags]
        self.log = home / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)

    async def __aenter__(self) -> Self:
        assert self.process.stdout is not None
        with trio.fail_after(READY_S):
            line = await trio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        assert line, self.log.read_text()
        self.ready = json.loads(line)
        return self

    async def __aexit__(self, *fault: object) -> None:
        self.process.terminate()
        assert await trio.to_thread.run_sync(self.process.wait, 30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def gateway(self) -> str:
        """Where it answers now: another port after it went over to another network."""
        return json.loads((self.home / ".local/state/isochrone/node.json").read_text())["gateway"]


async def test_a_running_node_goes_over_to_the_network_that_it_is_invited_to(tmp_path: Path) -> None:
    async with (
        Process(tmp_path / "ann", "--engine", "echo") as ann,
        Process(tmp_path / "ben", "--engine", "none") as ben,
    ):
        assert (await told(ann.gateway, "/mesh/peers"))["peers"] == []
        invitation = run("invite", "--owner", "ben", home=tmp_path / "ann").strip()
        assert invitation.startswith("isochrone join isoinvite1")
        run(*invitation.split()[1:], home=tmp_path / "ben")
        with trio.fail_after(30):
            while True:
                try:
                    if await answered_by(ben.gateway) == ann.ready["peer_id"]:
                        break
                except (httpx.HTTPError, OSError):
                    await trio.sleep(0.2)  # on its way from one network to the other
        (row,) = (await told(ann.gateway, "/mesh/peers"))["peers"]
        assert (row["peer_id"], row["owner"]) == (ben.ready["peer_id"], "ben")
        membership = (await told(ben.gateway, "/mesh/status"))["membership"]
        assert (membership["standing"], membership["owner"], membership["is_issuer"]) == ("member", "ben", False)


async def test_a_machine_that_joined_finds_the_network_at_its_next_start_until_it_is_put_out(tmp_path: Path) -> None:
    ben_home, state = tmp_path / "ben", str(tmp_path / "ben" / "f")
    ben_home.mkdir()
    async with Process(tmp_path / "ann", "--engine", "echo") as ann:
        invitation = run("invite", "--owner", "ben", home=tmp_path / "ann").strip()
        joined = run(*invitation.split()[1:], "--state-dir", state, home=ben_home)
        assert joined.endswith(f"\n  isochrone up --state-dir {state}\n")
        for _ in range(2):  # the first start, and one after it
            async with Process(ben_home, "--engine", "none", "--state-dir", state) as ben:
                with trio.fail_after(30):
                    while not (rows := (await told(ben.ready["gateway"], "/mesh/peers"))["peers"]):  # noqa: ASYNC110  # another process tells
                        await trio.sleep(LOOK_S)
                    assert [row["peer_id"] for row in rows] == [ann.ready["peer_id"]]
                    while not (rows := (await told(ann.gateway, "/mesh/peers"))["peers"]) or not rows[0]["connected"]:  # noqa: ASYNC110  # another process tells
                        await trio.sleep(LOOK_S)
                    assert (rows[0]["peer_id"], rows[0]["owner"]) == (ben.ready["peer_id"], "ben")
                    while "echo" not in run("models", "--state-dir", state, home=ben_home):  # noqa: ASYNC110  # another process tells
                        await trio.sleep(LOOK_S)
                assert run("ask", "hello", "--state-dir", state, home=ben_home) == "hello\n"
        async with Process(ben_home, "--engine", "none", "--state-dir", state) as ben:
            with trio.fail_after(30):
                while not (await told(ann.gateway, "/mesh/status"))["connections"]:  # noqa: ASYNC110  # another process tells
                    await trio.sleep(LOOK_S)
            run("network", "revoke", ben.ready["peer_id"], "--reason", "machine sold", home=tmp_path / "ann")
            with trio.fail_after(30):
                seen = ""
                while "turned away" not in seen:
                    seen = await trio.to_thread.run_sync(partial(run, "peers", "--state-dir", state, home=ben_home))
            assert "revoked" in seen
            assert f"isochrone join --state-dir {state} TOKEN" in seen
            assert f"Put out: {ben.ready['peer_id']}: machine sold" in run("peers", home=tmp_path / "ann")
            assert (await told(ann.gateway, "/mesh/peers"))["peers"] == []
