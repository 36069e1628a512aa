"""How the command line finds the node that runs here: `node.json` in the state directory, and HTTP to its gateway.

`isochrone up` writes the file when the node is ready and removes it on a clean stop. After a crash it stays behind; then the
process it names is gone or its gateway refuses the connection, and the message says that no node runs here.
"""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.config import Ready
from mesh.store import StoreFault, replace_file

NODE_FILE = "node.json"
NODE_FILE_BYTES_MAX = 64 * 1024
"""Bytes read of a node file; 16 addresses of 150 bytes are far below."""


@dataclass(frozen=True, slots=True)
class RunningNode:
    """What `node.json` says; where the gateway wants a key or speaks TLS, also which files hold them."""

    pid: int
    ready: Ready
    key_file: Path | None = None
    tls_cert: Path | None = None


class ClientError(Exception):
    """The node answered, and the answer is an error."""


class NoNodeError(Exception):
    """There is no node to talk to; the text says where it was looked for and what to do."""


def write_node_file(
    state_dir: Path, ready: Ready, key_file: Path | None = None, tls_cert: Path | None = None
) -> StoreFault | None:
    """Say that this process runs a node from `state_dir`, and how its gateway is opened; the key itself stays where it is."""
    content = {"pid": os.getpid(), "peer_id": ready.peer_id, "addresses": list(ready.addresses), "gateway": ready.gateway}
    files = {"gateway_key_file": key_file, "gateway_tls_cert": tls_cert}
    if ready.client_socket:
        content["client_socket"] = ready.client_socket
    content |= {name: str(path) for name, path in files.items() if path is not None}
    return replace_file(state_dir / NODE_FILE, json.dumps(content, indent=1) + "\n")


def remove_node_file(state_dir: Path) -> None:
    """Take the file away, quietly where it is gone already."""
    with suppress(OSError):
        (state_dir / NODE_FILE).unlink()


def find_node(state_dir: Path) -> RunningNode:
    """Read which node runs from `state_dir`.

    Raises:
        NoNodeError: if there is none, or the one that wrote the file ended without a clean stop.
    """
    path = state_dir / NODE_FILE
    hint = "start one with `isochrone up`, or name another with --state-dir or --gateway"
    try:
        with path.open("rb") as file:
            _check_ours(path, file.fileno())
            content = json.loads(file.read(NODE_FILE_BYTES_MAX))
    except FileNotFoundError:
        raise NoNodeError(f"no node is running here ({state_dir}): {hint}") from None
    except OSError as error:
        raise NoNodeError(f"{path} cannot be read ({error.strerror}): {hint}") from error
    except ValueError:
        content = None
    match content:
        case {"pid": int() as pid, "peer_id": str() as peer_id, "addresses": [*addresses], "gateway": str() as gateway}:
            socket = content.get("client_socket")
            ready = Ready(peer_id, tuple(map(str, addresses)), gateway, socket if isinstance(socket, str) else "")
            running = RunningNode(pid, ready, _path(content, "gateway_key_file"), _path(content, "gateway_tls_cert"))
        case _:
            raise NoNodeError(f"{path} is damaged: remove it, then {hint}")
    if not is_alive(pid):
        raise NoNodeError(f"no node is running here ({state_dir}): process {pid} ended without a clean stop; {hint}")
    return running


def _check_ours(path: Path, descriptor: int) -> None:
    """Refuse a file that another user wrote or can write: it says where keys are sent.

    Raises:
        NoNodeError: with what to do.
    """
    status = os.fstat(descriptor)
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise NoNodeError(f"{path} belongs to another user: run the command as that user, or name the node with --gateway")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise NoNodeError(f"{path} can be written by others, and it says where keys are sent: run  chmod 600 {path}")


def _path(content: Mapping[str, object], name: str) -> Path | None:
    value = content.get(name)
    return Path(value) if isinstance(value, str) else None


def is_alive(pid: int) -> bool:
    """Tell whether a process of that id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
