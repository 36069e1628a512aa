"""What is said where there is nothing to show: how it stands, and what to type next.

An empty table leaves a person alone, most of all at the first start and after a node was put out of its network.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def typed(command: str, *, state_dir: Path | None = None, network_dir: Path | None = None) -> str:
    """A command as it is to be typed, with the directories that were given to the one before it."""
    words = ["isochrone", command]
    for flag, path in (("--state-dir", state_dir), ("--network-dir", network_dir)):
        if path is not None:
            words += [flag, shlex.quote(str(path))]
    return " ".join(words)


def of_peers(rows: Sequence[Mapping[str, Any]], status: Mapping[str, Any], state_dir: Path | None = None) -> list[str]:
    """What is said below the peers: why there are none, or none that this node may talk to, and who was put out.

    Args:
        rows: the peers.
        status: what the node says of itself (`GET /mesh/status`).
        state_dir: the state directory that was named to the command.
    """
    membership = status.get("membership")
    private = membership if isinstance(membership, Mapping) else {}
    outside = private.get("turned_away") or private.get("standing", "member") != "member"
    revoked = private.get("revoked")
    put_out = [f"Put out: {text}" for text in revoked] if isinstance(revoked, list) else []
    return [*(no_peers(status, state_dir) if outside or not rows else []), *put_out]


def no_peers(status: Mapping[str, Any], state_dir: Path | None = None) -> list[str]:
    """Why a node may have no peers, and how it gets some.

    Args:
        status: what the node says of itself (`GET /mesh/status`).
        state_dir: the state directory that was named to the command.
    """
    addresses = status.get("addresses")
    address = str(addresses[0]) if isinstance(addresses, list) and addresses else "ADDRESS"
    membership = status.get("membership")
    if not isinstance(membership, Mapping):
        network = status.get("network", "")
        return ["No peers yet. Others join with", f"  isochrone up --open --network {network} --bootstrap {address}"]
    name = membership.get("name", "")
    if membership.get("standing") != "member":
        why = membership.get("why") or membership.get("standing")
        return [f"This node is no member of network {name!r} now: {why}.", *_invited_anew(state_dir)]
    if membership.get("turned_away"):
        return [f"This node was turned away by {membership['turned_away']}.", *_invited_anew(state_dir)]
    if not membership.get("is_issuer"):
        return [
            f"No peers yet in network {name!r}. This node keeps trying where it was invited from, and whom it knew;",
            "see that a node of the network runs there and that its UDP port can be reached from here.",
        ]
    return [
        "No peers yet. Other machines join with an invitation",
        f"  {typed('invite', state_dir=state_dir)}",
        "Your other nodes on this machine find this one with",
        f"  isochrone up --bootstrap {address}",
    ]


def no_models(state_dir: Path | None = None) -> list[str]:
    """Why there may be no models, and how there are some."""
    return [
        "No models: neither this node nor any peer that it knows serves one now. See whom it knows with",
        f"  {typed('peers', state_dir=state_dir)}",
        "or start a node with an engine, such as",
        f"  {typed('up', state_dir=state_dir)} --engine http://127.0.0.1:8000",
    ]


def _invited_anew(state_dir: Path | None) -> list[str]:
    return ["An issuer of the network can let it in anew: let one make an invitation (isochrone invite), and type here",
            f"  {typed('join', state_dir=state_dir)} TOKEN"]  # fmt: skip
