"""Keys of the gateway: who has one may call.

A key file has one key a line, `NAME KEY`; lines that begin with `#` are comments. It is read once, at the start. Where it does
not exist yet it is made, with one key in it, readable by its owner alone; one that others can read is refused, since whoever read
it may call. Only hashes of the keys are kept, and every one of them is compared with what a client presents, in time that does
not depend on either: an answer's delay says nothing about a key.

Source: RFC 6750, section 2.1 (bearer tokens); RFC 2104 and Python's `hmac.compare_digest` on comparison in constant time.
Spec: docs/gateway.md, section "Who may call".
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from mesh.config import StartError
from mesh.store import DIRECTORY_MODE, replace_file

KEYS_MAX = 64
"""Keys in one file, a count: each is compared at every request, and each has a budget."""

KEY_FILE_BYTES_MAX = 64 * 1024
"""Bytes read of a key file; `KEYS_MAX` of the longest lines are 22 KiB."""

KEY_BYTES = 32
"""Random bytes of a key made here: 256 bits."""

KEY_PREFIX = "iso_"
"""Begins a key made here, so that it is known for what it is where it should not be."""

GENERATED_NAME = "owner"
"""Name of the key made at the first start."""

_KEY = re.compile(r"[A-Za-z0-9_.~+/=-]{16,256}", re.ASCII)
"""What RFC 6750 lets a bearer token consist of; shorter ones can be guessed."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
"""A key's name; it stands in log lines."""

_HEAD = (
    "# Keys of an Isochrone gateway, one a line: NAME KEY. Who has a key may use the gateway.\n"
    "# Take a line out and start the node again to shut its holder out.\n"
)


class KeyFileError(StartError):
    """The key file cannot be used; the text says why and what to do."""


class KeyRing:
    """The keys that open the gateway, as hashes."""

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        """Take the keys.

        Args:
            keys: pairs of name and key.
        """
        self._hashes = tuple((name, hashlib.sha256(key.encode()).digest()) for name, key in keys)

    def owner_of(self, presented: bytes) -> str | None:
        """The name of the key that is `presented`, or None; takes as long for either."""
        offered = hashlib.sha256(presented).digest()
        found: str | None = None
        for name, known in self._hashes:
            if hmac.compare_digest(known, offered):
                found = name
        return found


def open_key_file(path: Path) -> KeyRing:
    """Read the keys; where there is no file yet one is made, with one key.

    Raises:
        KeyFileError: it cannot be read or made, others can read it, or a line is no key.
    """
    try:
        return KeyRing(read_keys(path))
    except FileNotFoundError:
        pass
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyFileError(
            f"{path.parent} cannot be made ({error.strerror}): choose another place with --gateway-key-file"
        ) from error
    fault = replace_file(path, f"{_HEAD}{GENERATED_NAME} {KEY_PREFIX}{secrets.token_urlsafe(KEY_BYTES)}\n")
    if fault is not None:
        raise KeyFileError(f"{fault}: choose another place with --gateway-key-file")
    return KeyRing(read_keys(path))


def read_keys(path: Path) -> list[tuple[str, str]]:
    """The names and keys of a file, at least one, in its order.

    Raises:
        FileNotFoundError: there is none.
        KeyFileError: it cannot be read, others can read it, or a line is no key.
    """
    try:
        with path.open("rb") as file:
            check_private(path, file.fileno())
            content = file.read(KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror}): run the node as the file's owner") from error
    if len(content) > KEY_FILE_BYTES_MAX:
        raise KeyFileError(f"{path} is larger than {KEY_FILE_BYTES_MAX} bytes: it is no file of keys")
    keys: dict[str, str] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # The line itself is not told: it may hold a key.
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _KEY.fullmatch(words[1]):
            raise KeyFileError(
                f"{path}, line {number}: write NAME KEY, with a name of a-z, 0-9, '.', '_' or '-' and a key of 16 to 256 "
                "letters, digits or any of _.~+/=-"
            )
        if words[0] in keys:
            raise KeyFileError(f"{path}, line {number}: the name {words[0]!r} stands there twice")
        keys[words[0]] = words[1]
    if not keys:
        raise KeyFileError(f"{path} holds no key: remove it to have one made, or write a line NAME KEY")
    if len(keys) > KEYS_MAX:
        raise KeyFileError(f"{path} holds {len(keys)} keys; at most {KEYS_MAX} are read")
    return list(keys.items())


def check_private(path: Path, descriptor: int) -> None:
    """Refuse a secret that others can read.

    Raises:
        KeyFileError: with the command that mends it.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path} is not a regular file")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise KeyFileError(
            f"{path} can be read by others (mode {mode:04o}), so what is in it may be known: run  chmod 600 {path}  and start "
            "again; where others did read it, make a new one"
        )
