"""The state directory: the node's key, its sequence reservation, the peers it knew, and the lock that makes it one node's own.

There is one start path, whether the last stop was clean or a crash. Every file is replaced whole: written beside its place,
synced, renamed, and the directory synced, so that a crash leaves the old or the new content and nothing between. Each kind of
loss has its own answer:

* the key is the node's name. A damaged, unreadable or too openly readable one stops the node; nothing here ever writes over one.
* sequence numbers are reserved on disk before they are used, so that a crash skips numbers and never reuses one. After a start
  they continue no lower than the wall clock in milliseconds, which heals a lost file or a restored backup.
* floors are the least sequence numbers that are still taken of other nodes' records, so that no older one is taken after a
  restart. A damaged file is put aside; what is lost with it is lost until those records have expired.
* known peers are a cache. A damaged file is put aside under another name and the node starts with its bootstrap addresses.

A full or failing disk stops no running node: what could not be written is told, what stood there before still stands, and the
caller tries again later.

Source: OpenSSH's treatment of private key files; RFC 7468 section 2 (text before the PEM block), RFC 8410 section 7 (Ed25519
keys).
"""

import base64
import binascii
import fcntl
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh.config import StartError
from protocol.errors import ProtocolError
from protocol.identity import Identity, PeerId, parse_peer_id, peer_id_text
from protocol.multiaddr import Multiaddr, parse_multiaddr
from protocol.table import Floor, RecordKey

KEY_FILE = "identity.pem"
SEQUENCE_FILE = "sequence"
PEERS_FILE = "peers"
FLOORS_FILE = "floors"
LOCK_FILE = "lock"
TEMPORARY_SUFFIX = ".new"

SEQUENCE_MAX = (1 << 53) - 1
"""Highest number to continue from: every JSON reader holds it exactly, and the clock's milliseconds reach it in 285,000 years."""
PEERS_MAX = 256
"""Known peers kept; as many as a node holds connections to."""
FLOORS_MAX = 16_384
"""Floors kept: as many as the core hands out. A line of one has 52 bytes at most, so all stay under `FILE_BYTES_MAX`."""
PEER_ADDRESSES_MAX = 8
"""Addresses kept per known peer."""
FILE_BYTES_MAX = 1 << 20
"""Bytes read of any state file; `PEERS_MAX` peers with all their addresses stay under half of it."""
KEY_MODE = 0o600
"""Permission bits of the key file: its owner may read and write, nobody else anything."""
DIRECTORY_MODE = 0o700
"""Permission bits of a state directory made here."""

# PKCS#8 of an Ed25519 key is this prefix and the 32-byte seed (RFC 8410 section 7): version 0, OID 1.3.101.112, two octet
# strings.
_PKCS8_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_PEM_BEGIN = "-----BEGIN PRIVATE KEY-----"
_PEM_END = "-----END PRIVATE KEY-----"
_KEY_TEXT = re.compile(
    rf"(?:[^\n]*\n)*?Peer-Id: (?P<peer_id>\S+)\n{_PEM_BEGIN}\n(?P<body>[A-Za-z0-9+/=\n]+){_PEM_END}\n?", re.ASCII
)
_SEQUENCE_TEXT = re.compile(r"isochrone-sequence 1 (?P<upto>\d{1,19}) (?P<crc>[0-9a-f]{8})\n?", re.ASCII)
_PEERS_HEADER = "isochrone-peers 1"
_FLOORS_HEADER = "isochrone-floors 1"
_FLOOR_LINE = re.compile(r"^([0-9a-f]{16}) (\d{1,19}) (\d{1,13})\n", re.ASCII | re.MULTILINE)


class StateError(StartError):
    """The node cannot start from this state directory; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class StoreFault:
    """A write that did not reach the disk; nothing was lost that stood there before."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} was not written: {self.reason}"


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """A peer that was reachable once. `last_seen_s` is wall-clock seconds since 1970."""

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]
    last_seen_s: float


class Store:
    """One node's state directory, held by a lock from `Store(path)` to `close()`.

    Args:
        path: the directory; made with mode 0700 if it is absent.

    Attributes:
        findings: sentences about damage that was healed, for the log.

    Raises:
        StateError: if it cannot be made or locked, or another node holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.findings: list[str] = []
        self._reserved = 0
        try:
            path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            # What else stands under that name is left alone: it would be emptied.
            self._lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, KEY_MODE)
        except OSError as error:
            raise StateError(
                f"{path} cannot be used as state directory ({error.strerror}): choose one you can write to with --state-dir"
            ) from error
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o022:
            self.findings.append(
                f"{path} can be written by others (mode {mode:04o}), who can put files of their own there: run  chmod 700 {path}"
            )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            if not isinstance(error, BlockingIOError):
                raise StateError(
                    f"{path} cannot be locked ({error.strerror}): choose a local directory with --state-dir"
                ) from error
            who = f" (process {holder})" if holder.isdigit() else ""
            raise StateError(
                f"another node{who} is using {path}: stop it, or give this one a directory of its own with --state-dir"
            ) from error
        # The process id only serves the message above, so a disk too full to hold it is no reason to stop.
        with suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back; calling it twice does nothing more."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def identity(self, entropy: Callable[[int], bytes] = os.urandom) -> Identity:
        """Return the node's identity; on the very first start it is made from `entropy(32)` and written.

        Raises:
            StateError: if the key is damaged, unreadable, readable by others, missing from a directory that was in use, or cannot
                be written.
        """
        path = self.path / KEY_FILE
        try:
            return read_key(path)
        except FileNotFoundError:
            pass
        if (self.path / SEQUENCE_FILE).exists():
            raise StateError(
                f"{path} is gone, but the directory was in use: restore the key from a backup, "
                "or start as a new node with an empty --state-dir"
            )
        identity = Identity.from_seed(entropy(32))
        fault = self._replace(KEY_FILE, key_text(identity))
        if fault is not None:
            raise StateError(f"{fault}: free the disk or choose another --state-dir")
        # What was written is read back, so that a disk that lies is noticed before anybody learns the name.
        return read_key(path)

    def reserved(self, wall_s: float) -> int:
        """Return the number that sequence numbers continue from: nothing above it was ever used.

        Args:
            wall_s: wall-clock seconds since 1970; a lost or restored reservation continues from its milliseconds.

        Raises:
            StateError: if the reservation cannot be read, or stands so high that no numbers are left.
        """
        self._reserved = max(self._reserved, self._read_sequence())
        start = max(self._reserved, int(wall_s * 1000))
        if start >= SEQUENCE_MAX:
            advice = "correct the clock, or start as a new node with an empty --state-dir"
            raise StateError(f"{self.path / SEQUENCE_FILE} leaves no sequence numbers above {start}: {advice}")
        return start

    def reserve(self, upto: int) -> None:
        """Put on disk that sequence numbers up to `upto` may be used from now on; a lower number than before changes nothing.

        Raises:
            OSError: if it is not on disk. An exception and not a value, so that a number is never used by oversight.
        """
        if upto <= self._reserved:
            return
        fault = self._replace(SEQUENCE_FILE, f"isochrone-sequence 1 {upto} {_crc(str(upto))}\n")
        if fault is not None:
            raise OSError(str(fault))
        self._reserved = upto

    def load_peers(self, wall_s: float) -> tuple[KnownPeer, ...]:
        """Return the peers kept by the last run, most recently seen first; a damaged file is put aside and counts as empty."""
        try:
            lines = _read_text(self.path / PEERS_FILE).splitlines()
            if lines[:1] != [_PEERS_HEADER] or len(lines) > PEERS_MAX + 1:
                raise ValueError("not a list of peers")  # noqa: TRY301  # damage found here is answered like damage found below
            return tuple(_peer_from_line(line) for line in lines[1:])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, ProtocolError):
            self._put_aside(PEERS_FILE, wall_s)
            return ()

    def save_peers(self, peers: Iterable[KnownPeer]) -> StoreFault | None:
        """Keep the `PEERS_MAX` most recently seen of `peers` for the next start; returns why if they could not be written."""
        newest = sorted(peers, key=lambda peer: -peer.last_seen_s)[:PEERS_MAX]
        return self._replace(PEERS_FILE, "".join(f"{line}\n" for line in (_PEERS_HEADER, *map(_peer_line, newest))))

    def load_floors(self, wall_s: float) -> tuple[Floor, ...]:
        """Return the floors kept by the last run; a damaged file is put aside and counts as empty."""
        try:
            return floors_from_text(_read_text(self.path / FLOORS_FILE))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError):
            self._put_aside(FLOORS_FILE, wall_s)
            return ()

    def save_floors(self, floors: Sequence[Floor]) -> StoreFault | None:
        """Keep floors for the next start; returns why if they could not be written."""
        return self._replace(FLOORS_FILE, floors_text(floors[:FLOORS_MAX]))

    def _read_sequence(self) -> int:
        """Return the end of the last reservation; 0 when there is none or it is damaged, as the wall clock is above it then."""
        path = self.path / SEQUENCE_FILE
        try:
            match = _SEQUENCE_TEXT.fullmatch(_read_text(path))
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StateError(f"{path} cannot be read ({error.strerror}): repair its permissions or the disk") from error
        except ValueError:
            match = None
        if match is None or _crc(match["upto"]) != match["crc"]:
            self.findings.append(f"{path} is damaged; sequence numbers continue from the wall clock")
            return 0
        return int(match["upto"])

    def _put_aside(self, name: str, wall_s: float) -> None:
        aside = self.path / f"{name}.corrupt-{int(wall_s)}"
        try:
            (self.path / name).rename(aside)
            self.findings.append(f"{self.path / name} is damaged; it was put aside as {aside.name}")
        except OSError as error:
            self.findings.append(f"{self.path / name} is damaged and could not be put aside: {error.strerror}")

    def _replace(self, name: str, text: str) -> StoreFault | None:
        return replace_file(self.path / name, text)


def replace_file(path: Path, text: str) -> StoreFault | None:
    """Put `text` at `path` as a whole, readable by the owner alone; after a crash the old or the new content stands there."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, KEY_MODE)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        return StoreFault(path, error.strerror or str(error))
    return None


def floors_text(floors: Iterable[Floor]) -> str:
    """The file of these floors: a header with a checksum over the lines, then a line for each."""
    lines = "".join(f"{floor.key.hex()} {floor.least} {math.ceil(floor.forget_at_s)}\n" for floor in floors)
    return f"{_FLOORS_HEADER} {_crc(lines)}\n{lines}"


def floors_from_text(text: str) -> tuple[Floor, ...]:
    """Read what `floors_text` writes.

    Raises:
        ValueError: it is anything else.
    """
    header, _, lines = text.partition("\n")
    found = _FLOOR_LINE.findall(lines)
    if header != f"{_FLOORS_HEADER} {_crc(lines)}" or len(found) != lines.count("\n") or len(found) > FLOORS_MAX:
        raise ValueError("not a list of floors")
    return tuple(Floor(RecordKey(bytes.fromhex(key)), int(least), float(forget_at)) for key, least, forget_at in found)


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
    return content.decode("utf-8")


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def key_text(identity: Identity, what: str = "an Isochrone node: who has it, is the node") -> str:
    """The content of a key file."""
    body = base64.b64encode(_PKCS8_PREFIX + identity.seed).decode("ascii")
    return (
        f"The private key of {what}. Keep a copy in a safe place.\n"
        f"Peer-Id: {peer_id_text(identity.peer_id)}\n{_PEM_BEGIN}\n{body}\n{_PEM_END}\n"
    )


def read_key(path: Path) -> Identity:
    """Read a key file: PKCS#8 in PEM, after a `Peer-Id:` line that works as its checksum.

    Raises:
        FileNotFoundError: if there is none.
        StateError: if it cannot be used.
    """
    never = "it is never replaced by itself; restore it from a backup, or start as a new node with an empty --state-dir"
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StateError(f"{path} is not a regular file: {never}")
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise StateError(
                    f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}), so the key may be known: "
                    f"run  chmod 600 {path}  and start again"
                )
            content = file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}): run the node as the key's owner; {never}") from error
    match = _KEY_TEXT.fullmatch(content.decode("utf-8", "replace"))
    if match is None:
        raise StateError(f"{path} is not a node key (a Peer-Id line and a PEM block are expected): {never}")
    try:
        der = base64.b64decode(match["body"].replace("\n", ""), validate=True)
    except binascii.Error:
        der = b""
    if len(der) != len(_PKCS8_PREFIX) + 32 or not der.startswith(_PKCS8_PREFIX):
        raise StateError(f"{path} does not hold an Ed25519 key: {never}")
    identity = Identity.from_seed(der[len(_PKCS8_PREFIX) :])
    if peer_id_text(identity.peer_id) != match["peer_id"]:
        raise StateError(
            f"{path} is damaged: its key belongs to {peer_id_text(identity.peer_id)}, "
            f"its Peer-Id line says {match['peer_id']}: {never}"
        )
    return identity


def _peer_line(peer: KnownPeer) -> str:
    addresses = [str(address) for address in peer.addresses[:PEER_ADDRESSES_MAX]]
    text = json.dumps([peer_id_text(peer.peer_id), peer.last_seen_s, addresses], separators=(",", ":"))
    return f"{_crc(text)} {text}"


def _peer_from_line(line: str) -> KnownPeer:
    """Parse one line; raises ValueError or ProtocolError for anything `_peer_line` does not write."""
    crc, _, text = line.partition(" ")
    if crc != _crc(text):
        raise ValueError("checksum")
    match json.loads(text):
        case [str(peer_id), float() | int() as last_seen_s, [*addresses]] if len(addresses) <= PEER_ADDRESSES_MAX:
            return KnownPeer(
                parse_peer_id(peer_id), tuple(parse_multiaddr(str(address)) for address in addresses), float(last_seen_s)
            )
        case _:
            raise ValueError("shape")
