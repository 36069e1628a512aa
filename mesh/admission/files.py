"""What is kept on disk of private networks.

The network directory holds a network that this user owns, shared by all nodes that the user starts on the machine:

* `root.pem`, the network's private key, which may lie elsewhere: only delegations, and what the owner says, need it;
* `network`, the network's name and public key.

The state directory of a node holds what concerns that node:

* `membership`: what it shows, what was delegated to it, and where issuers answer;
* `invites`: how often its invitations were used;
* `notices/`: what the network's key and issuers have signed, one file for each signer and subject.

Every file carries a checksum and is replaced whole. The commands write `membership` and `notices/` while the node runs, and the
node takes over what is newer; a file that is damaged is told, and never taken for an empty one where that would let somebody in.
"""

import base64
import fcntl
import json
import os
import re
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mesh.config import StartError
from mesh.store import DIRECTORY_MODE, KEY_MODE, StateError, StoreFault, key_text, read_key, replace_file
from protocol.admission import Invites, Notice, Used, network_id_of, network_text, parse_network
from protocol.errors import ProtocolError
from protocol.identity import Identity, PeerId, parse_peer_id, peer_id_text
from protocol.multiaddr import Multiaddr, parse_multiaddr

ROOT_FILE = "root.pem"
NETWORK_FILE = "network"
MEMBERSHIP_FILE = "membership"
INVITES_FILE = "invites"
NOTICES_FOLDER = "notices"

FILE_BYTES_MAX = 4 << 20
"""Bytes read of any of these files: a thousand invitations of a thousand uses would be more, and no owner hands out so many."""

NOTICE_FILES_MAX = 512
"""Notices read of one directory: more than all signers of all networks that a node hears."""

HOME_NAME = "home"
"""What the network is called that the first node of a user makes."""

_NOTICE_NAME = re.compile(r"[a-z]+-net-[a-z2-7]{32}-[1-9A-HJ-NP-Za-km-z]{1,64}")


@dataclass(frozen=True, slots=True)
class Network:
    """A network as its directory names it."""

    root: bytes
    name: str

    @property
    def network_id(self) -> str:
        """Its id."""
        return network_id_of(self.root)

    @property
    def descriptor(self) -> str:
        """The text by which it is named to others."""
        return network_text(self.root, self.name)


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes a node a member.

    Attributes:
        root: the network's public key.
        name: what the network is called here.
        shown: the certificate and its delegation, as they are shown.
        delegation: what was delegated to this node itself; empty where nothing was.
        issuers: where issuers answer, with their peer ids.
        is_home: whether the node gave it to itself out of the user's network directory.
    """

    root: bytes
    name: str
    shown: bytes
    delegation: bytes = b""
    issuers: tuple[Multiaddr, ...] = field(default=())
    is_home: bool = False


# The network directory


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Hold a directory, made if it is absent, while what is in it changes.

    Raises:
        StartError: it cannot be used.
    """
    try:
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, KEY_MODE)
    except OSError as error:
        advice = "choose a directory you can write to with --network-dir"
        raise StartError(f"{directory} cannot be used as network directory ({error.strerror}): {advice}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_network(directory: Path) -> Network | None:
    """The network of a directory, None where there is none.

    Raises:
        StartError: the file is damaged.
    """
    path = directory / NETWORK_FILE
    try:
        root, name = parse_network(path.read_text()[:4096])
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        reason = error.strerror if isinstance(error, OSError) else getattr(error, "detail", "it is no text")
        raise StartError(
            f"{path} cannot be read ({reason}): restore it, or choose another directory with --network-dir"
        ) from error
    return Network(root, name)


def write_network(directory: Path, root: Identity, name: str, key_file: Path) -> Network:
    """Keep a new network; call it with the directory locked.

    Raises:
        StartError: it cannot be written.
    """
    if key_file.exists():
        raise StartError(f"{key_file} exists already; a key is never written over: choose another file with --key")
    network = Network(root.public_key, name)
    what = f"the Isochrone network {network.network_id} ({name}): who has it, owns the network"
    for path, text in ((key_file, key_text(root, what)), (directory / NETWORK_FILE, network.descriptor + "\n")):
        fault = replace_file(path, text)
        if fault is not None:
            raise StartError(f"{fault}: free the disk or choose another place")
    return network


def read_root(directory: Path, key_file: Path | None = None) -> Identity | None:
    """The key of a directory's network, None where it lies elsewhere.

    Raises:
        StartError: the key is damaged, can be read by others, or is not the network's.
    """
    path = key_file or directory / ROOT_FILE
    try:
        root = read_key(path)
    except FileNotFoundError:
        if key_file is not None:
            raise StartError(f"there is no key at {key_file}: give the file that `isochrone network create` wrote") from None
        return None
    network = read_network(directory)
    if key_file is None and network is not None and network.root != root.public_key:
        raise StartError(f"{path} is not the key of the network in {directory}: restore the right one")
    return root


# The state directory


def read_membership(state_dir: Path) -> Membership | None:
    """What a node was given, None where it was given nothing.

    Raises:
        StateError: the file is damaged.
    """
    path = state_dir / MEMBERSHIP_FILE
    content = _read(path, "isochrone-membership 1")
    if content is None:
        return None
    match content:
        case {
            "network": str(network),
            "shown": str(shown),
            "delegation": str(delegation),
            "issuers": [*issuers],
            "home": bool(is_home),
        }:
            with suppress(ProtocolError, ValueError):
                root, name = parse_network(network)
                addresses = tuple(parse_multiaddr(str(item)) for item in issuers)
                return Membership(root, name, _bytes(shown), _bytes(delegation), addresses, is_home)
    raise _damaged(path)


def write_membership(state_dir: Path, membership: Membership) -> StoreFault | None:
    """Keep what a node was given."""
    content = {
        "network": network_text(membership.root, membership.name),
        "shown": _text(membership.shown),
        "delegation": _text(membership.delegation),
        "issuers": [str(address) for address in membership.issuers],
        "home": membership.is_home,
    }
    return _write(state_dir / MEMBERSHIP_FILE, "isochrone-membership 1", content)


def read_invites(state_dir: Path, tokens_max: int) -> Invites:
    """The uses of a node's invitations.

    Raises:
        StateError: the file is damaged: an empty one would let in again who was refused.
    """
    path = state_dir / INVITES_FILE
    content = _read(path, "isochrone-invites 1")
    if content is None:
        return Invites(tokens_max)
    match content:
        case {"used": [*rows], "forgotten_s": int(forgotten_s)}:
            with suppress(TypeError, ValueError, ProtocolError):
                return Invites(tokens_max, tuple(_used(row) for row in rows), forgotten_s)
    raise _damaged(path)


def _used(row: object) -> Used:
    match row:
        case [str(token_id), int(expires_s), [*peers]]:
            return Used(bytes.fromhex(token_id), expires_s, tuple(_use(peer) for peer in peers))
    raise ValueError("no invitation")


def _use(row: object) -> tuple[PeerId, int]:
    match row:
        case [str(peer), int(at_s)]:
            return parse_peer_id(peer), at_s
    raise ValueError("no use of an invitation")


def write_invites(state_dir: Path, invites: Invites) -> StoreFault | None:
    """Keep the uses of a node's invitations."""
    used = [
        [item.token_id.hex(), item.expires_s, [[peer_id_text(peer), at_s] for peer, at_s in item.peers]] for item in invites.used
    ]
    return _write(state_dir / INVITES_FILE, "isochrone-invites 1", {"used": used, "forgotten_s": invites.forgotten_s})


def notice_stamps(state_dir: Path) -> dict[Path, int]:
    """The files of notices, with the times of their last change in nanoseconds."""
    try:
        entries = sorted((state_dir / NOTICES_FOLDER).iterdir())[:NOTICE_FILES_MAX]
    except OSError:
        return {}
    return {path: stamp_of(path) for path in entries if _NOTICE_NAME.fullmatch(path.name)}


def stamp_of(path: Path) -> int:
    """When a file was changed last, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def read_notice(path: Path) -> tuple[bytes, bytes]:
    """A notice and its delegation, neither verified.

    Raises:
        StateError: the file is damaged.
    """
    content = _read(path, "isochrone-notice 1")
    match content:
        case {"notice": str(data), "delegation": str(delegation)}:
            return _bytes(data), _bytes(delegation)
    raise _damaged(path)


def write_notice(state_dir: Path, notice: Notice) -> StoreFault | None:
    """Keep a notice in place of the one before of the same signer and subject."""
    folder = state_dir / NOTICES_FOLDER
    path = folder / f"{notice.kind}-{network_id_of(notice.root)}-{peer_id_text(notice.signer)}"
    try:
        folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        return StoreFault(path, error.strerror or str(error))
    return _write(path, "isochrone-notice 1", {"notice": _text(notice.data), "delegation": _text(notice.delegation)})


def shown_anew(membership: Membership, shown: bytes) -> Membership:
    """The same membership with another certificate."""
    return replace(membership, shown=shown)


def _read(path: Path, header: str) -> dict[str, object] | None:
    """The content of a file, None where there is none."""
    try:
        with path.open("rb") as file:
            lines = file.read(FILE_BYTES_MAX).decode().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path) from error
    if len(lines) != 2 or lines[0] != f"{header} {_crc(lines[1])}":
        raise _damaged(path)
    try:
        content = json.loads(lines[1])
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _write(path: Path, header: str, content: object) -> StoreFault | None:
    text = json.dumps(content, separators=(",", ":"))
    return replace_file(path, f"{header} {_crc(text)}\n{text}\n")


def _damaged(path: Path) -> StateError:
    return StateError(f"{path} is damaged or cannot be read: restore it from a backup, or remove it and join anew")


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
