"""Whole nodes of private networks in one process, over real sockets; and the networks they belong to."""

import os
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import trio

sys.path.append(str(Path(__file__).parents[1] / "nodes"))
from mesh_nodes import LOOPBACK, MeshNode, eventually

from mesh.admission.entering import ALL_RIGHTS
from mesh.admission.files import Membership
from mesh.admission.gate import Gate
from mesh.machine import Machine
from mesh.service import Service
from mesh.store import Store
from mesh.transport import Door, Transport
from protocol.admission import (
    Admission,
    Certificate,
    Delegation,
    encode_member,
    network_id_of,
    sign_certificate,
    sign_delegation,
)
from protocol.identity import Identity

DAY_S = 86_400


class Owner:
    """A network's key, and its first issuer."""

    def __init__(self, number: int = 1, days_ago: int = 1) -> None:
        self.days_ago = days_ago
        self.root = Identity.from_seed(bytes([200 + number]) * 32)
        self.issuer = Identity.from_seed(bytes([100 + number]) * 32)
        self.network_id = network_id_of(self.root.public_key)
        self.delegation = self.delegate(self.issuer)

    def delegate(self, issuer: Identity) -> bytes:
        now_s = int(time.time())
        return sign_delegation(
            self.root,
            Delegation(self.root.public_key, issuer.peer_id, ALL_RIGHTS, (), now_s - self.days_ago * DAY_S, now_s + DAY_S, 1),
        )

    def shown(
        self, peer: Identity, start_s: int = -100, end_s: int = DAY_S, owner: str = "ann", roles: tuple[str, ...] = ()
    ) -> bytes:
        """What a member shows whose certificate is valid from `start_s` to `end_s` seconds from now."""
        now_s = int(time.time())
        certificate = Certificate(
            self.network_id, peer.peer_id, owner, roles, now_s + min(start_s, 0), now_s + start_s, now_s + end_s, 7
        )
        return encode_member(sign_certificate(self.issuer, certificate), self.delegation)

    def membership(self, peer: Identity, *, delegated: bool = False, **changes) -> Membership:
        """What makes a node a member; with `delegated` it is an issuer."""
        delegation = self.delegate(peer) if delegated else b""
        if delegated:
            changes["roles"] = ("issuer",)
        return Membership(self.root.public_key, "test", self.shown(peer, **changes), delegation)

    def door(self, peer: Identity, proof: bytes | None = None) -> Door:
        """What a lone transport of a member shows and asks."""
        admission = Admission(self.root.public_key)
        shown = self.shown(peer) if proof is None else proof

        def check(peer_id, found):
            admission.check(peer_id, found, time.time())
            return False

        return Door(lambda: shown, check)


class AdmittedNode(MeshNode):
    """One node of a private network. `membership` makes it a member, given its key; the network's key may be in `network_dir`."""

    def __init__(self, state_dir: Path, membership, *, network_dir: Path | None = None, **given) -> None:
        super().__init__(state_dir, **given)
        self._membership = membership
        self._network_dir = network_dir

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        def told(ready) -> None:
            self.ready = ready
            task_status.started()

        with self.scope, Store(self.config.state_dir) as store:
            identity = self.identity = store.identity()
            gate = self.gate = Gate(
                self.config.state_dir, identity, self._membership(identity), self.telemetry, Machine(), self._network_dir
            )
            self.service = Service(
                self.config, store, identity, self.engines, self.telemetry, self.limits, machine=gate._machine, gate=gate
            )
            await self.service.run(told, self.shutdown)
        self.ended.set()

    @property
    def connected(self) -> set:
        """Who is connected."""
        return set(self.service.transport.connections)

    @property
    def known(self) -> set:
        """Whose records are held, this node left out."""
        return set(self.service.node.table.peers()) - {self.peer_id}

    def state(self) -> tuple:
        """All that a node keeps of peers."""
        node = self.service.node
        return (
            self.connected,
            self.known,
            set(node.membership.connected()),
            set(node.views.known()),
            set(node.gossip.mesh()),
            set(self.gate.admission._members) - {self.peer_id},
            dict(self.gate._told),
            set(self.service.transport._by_handle),
        )


@asynccontextmanager
async def running(*nodes):
    """Run nodes, the later ones knowing the first."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        try:
            yield nodes
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def lone(identity: Identity | None = None, door: Door | None = None):
    """A bare transport, as any program may have one."""
    transport = Transport(identity or Identity.from_seed(os.urandom(32)), door=door)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, (LOOPBACK,))
        try:
            yield transport
        finally:
            await transport.aclose()
            nursery.cancel_scope.cancel()


async def until(reached) -> None:
    """Let the nodes work until something holds."""
    await eventually(reached, 20.0)
