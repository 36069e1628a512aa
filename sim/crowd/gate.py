"""A private network: the product's own check of join certificates, at the place of the TLS handshake.

Each honest node has a certificate of one network and its own `Admission`, and checks what the other end of a handshake shows
before its core hears of anything. Sybils show, by turns, nothing, the certificate of an honest node, one of a network that they
made themselves, and one that an insider's key without a delegation has signed. After the run every container of every honest core
is searched for the keys of sybils.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum

from protocol.admission import Admission, Delegation, Issuer, Right, open_shown, sign_delegation
from protocol.admission.statements import encode_member
from protocol.errors import RemoteProtocolError
from protocol.identity import Identity, PeerId
from protocol.node import Node
from protocol.records import RecordKind
from protocol.table import record_key
from sim.bounds import variables
from sim.process import Process
from sim.world import WALL_S, World

YEAR_S = 365 * 86_400
"""Seconds for which the delegations of a run are valid."""

DEPTH_MAX = 6
"""How deep a core is searched, a count: as deep as its containers are counted."""


def network(name: bytes) -> tuple[bytes, Issuer]:
    """A network that somebody has made: its public key, and who signs for it."""
    root, issuer = Identity.from_seed(name.ljust(32, b"r")), Identity.from_seed(name.ljust(32, b"i"))
    rights = (Right.ADMIT, Right.REVOKE)
    start_s = int(WALL_S) - 3600
    delegation = Delegation(root.public_key, issuer.peer_id, rights, (), start_s, start_s + YEAR_S, 1)
    return root.public_key, Issuer(issuer, sign_delegation(root, delegation))


class Gate:
    """Checks every handshake of a world.

    Attributes:
        refused: why sybils were refused, counts by the name of the code.
        past: sybils that an honest node took for members, as text.
    """

    def __init__(self, world: World, honest: list[Process]) -> None:
        """Gives every honest process a certificate."""
        self._world = world
        self._root, issuer = network(b"the owner's")
        _, self._theirs = network(b"the sybils'")
        self._shown: dict[PeerId, bytes] = {}
        self._admissions: dict[PeerId, Admission] = {}
        self._delegation = open_shown(issuer.own("", (), None, 1, WALL_S)).delegation
        for number, process in enumerate(honest):
            self._shown[process.peer_id] = issuer.certify(process.peer_id, "owner", (), int(WALL_S) - 60, number + 2, WALL_S)
            self._admissions[process.peer_id] = Admission(self._root)
        self._members = [self._shown[process.peer_id] for process in honest]
        self.refused: dict[str, int] = {}
        self.past: list[str] = []
        world.handshakes.append(self.admits)

    def equip(self, process: Process, number: int) -> None:
        """Gives a sybil what it shows."""
        match number % 4:
            case 0:
                shown = b""
            case 1:
                shown = self._members[number % len(self._members)]
            case 2:
                shown = self._theirs.certify(process.peer_id, "owner", (), int(WALL_S) - 60, number, WALL_S)
            case _:
                shown = self._by_an_insider(process, number)
        self._shown[process.peer_id] = shown

    def admits(self, dialler: Process, dialled: Process) -> bool:
        """Whether both ends of a handshake take one another for members; see `sim.world.Handshake`."""
        return self._admits(dialled, dialler) and self._admits(dialler, dialled)

    def left_behind(self, honest: list[Process], sybils: set[PeerId]) -> list[str]:
        """What honest nodes keep under the keys of sybils, their admission included."""
        keys = {bytes(record_key(peer_id, kind)) for peer_id in sybils for kind in RecordKind}
        known = {bytes(peer_id) for peer_id in sybils} | keys
        found = list(self.past)
        for process in honest:
            found += [f"n{process.index}: {path}" for path in traces(process.node, known)]
            admission = self._admissions[process.peer_id]
            found += [f"n{process.index}: admission" for peer_id in sybils if admission.member(peer_id, WALL_S) is not None]
        return found

    def _admits(self, who: Process, other: Process) -> bool:
        admission = self._admissions.get(who.peer_id)
        if admission is None:
            return True  # a sybil is not particular
        try:
            admission.check(other.peer_id, self._shown[other.peer_id], self._world.wall_s(who))
        except RemoteProtocolError as error:
            self.refused[error.code.name] = self.refused.get(error.code.name, 0) + 1
            return False
        if other.hostile:
            self.past.append(f"n{who.index} took n{other.index} for a member")
        return True

    def _by_an_insider(self, process: Process, number: int) -> bytes:
        """A certificate signed by a member that nobody has delegated anything to, beside the delegation of another."""
        theirs = open_shown(self._theirs.certify(process.peer_id, "owner", (), int(WALL_S) - 60, number, WALL_S))
        return encode_member(theirs.certificate, self._delegation)


def traces(node: Node, keys: set[bytes]) -> Iterator[str]:
    """Where in a core one of some keys stands, as paths."""
    for name, value in variables(node).items():
        if name not in ("config", "conduct"):
            yield from _walk(name, value, keys, 1)


def _walk(path: str, value: object, keys: set[bytes], depth: int) -> Iterator[str]:
    if isinstance(value, (bytes, tuple)):
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, bytes) and part in keys for part in parts):
            yield path
        return
    if depth > DEPTH_MAX or isinstance(value, (int, float, str, frozenset, Enum, type(None))):
        return
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _walk(f"{path}.key", key, keys, depth + 1)
            yield from _walk(f"{path}.*", child, keys, depth + 1)
    elif isinstance(value, (list, deque, set)):
        for child in value:
            yield from _walk(f"{path}.*", child, keys, depth + 1)
    elif type(value).__module__.startswith("protocol."):
        known = {entry.name: getattr(value, entry.name) for entry in fields(value)} if is_dataclass(value) else variables(value)
        for name, child in known.items():
            if name not in ("_config", "config"):
                yield from _walk(f"{path}.{name}", child, keys, depth + 1)
