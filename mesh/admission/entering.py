"""How a node gets into its network when it starts: by what it was given, else by the user's own network.

The first node that a user starts makes the user's network; each node that finds no other membership issues itself a certificate
from it, at every start. So a user's nodes on one machine belong together with nothing to set up.
"""

from collections.abc import Callable
from pathlib import Path

from mesh.admission import files
from mesh.admission.files import HOME_NAME, Membership, Network, locked, read_network, read_root, write_network
from mesh.config import StartError
from protocol.admission import Admission, Delegation, Issuer, Right, sign_delegation
from protocol.errors import ErrorCode, ProtocolError, RemoteProtocolError
from protocol.identity import SEED_BYTES, Identity, PeerId, peer_id_text

DELEGATED_S = 365 * 86_400
"""How long a delegation is valid, in seconds: a year, after which the owner looks for the key once."""

CLOCKS_S = 60
"""Delegations are valid from so many seconds ago, for issuers whose clocks are late."""

ALL_RIGHTS = tuple(right.value for right in Right)

Entropy = Callable[[int], bytes]


def enter(state_dir: Path, network_dir: Path, identity: Identity, wall_s: float, entropy: Entropy) -> Membership:
    """What makes a node a member, made where nothing was given to it.

    Args:
        state_dir: the node's.
        network_dir: the user's.
        identity: the node's key.
        wall_s: now, in wall-clock seconds since 1970.
        entropy: so many secret bytes.

    Raises:
        StartError: it is a member of nothing, or no more; the text says what to do.
    """
    kept = files.read_membership(state_dir)
    if kept is not None and not kept.is_home:
        return _fresh(state_dir, kept, identity, wall_s, entropy)
    with locked(network_dir):
        network = read_network(network_dir)
        if network is None:
            root = Identity.from_seed(entropy(SEED_BYTES))
            network = write_network(network_dir, root, HOME_NAME, network_dir / files.ROOT_FILE)
        found = read_root(network_dir)
    if found is None:
        if kept is not None and kept.root == network.root:
            return _fresh(state_dir, kept, identity, wall_s, entropy)
        raise StartError(
            f"the network {network.name!r} in {network_dir} has no key here, and this node ({state_dir}) has no certificate of "
            "it: let an issuer make an invitation (isochrone invite) and type here `isochrone join TOKEN`"
        )
    before = kept if kept is not None and kept.root == network.root else None
    membership = found_membership(network, found, identity, wall_s, entropy, before)
    _keep(state_dir, membership)
    return membership


def found_membership(
    network: Network, root: Identity, identity: Identity, wall_s: float, entropy: Entropy, before: Membership | None
) -> Membership:
    """What makes a node the first issuer of a network whose key is here; what it was admitted for before stays as it was."""
    delegation = delegate(root, identity.peer_id, wall_s, entropy)
    admitted_s = None
    if before is not None:
        try:
            admitted_s = Admission(network.root).check(identity.peer_id, before.shown, wall_s).admitted_s
        except RemoteProtocolError:
            admitted_s = None  # it has ended; a new one begins
    shown = Issuer(identity, delegation).own("", (), admitted_s, serial_of(entropy), wall_s)
    issuers = () if before is None else before.issuers
    return Membership(network.root, network.name, shown, delegation, issuers, is_home=True)


def delegated_anew(network_dir: Path, kept: Membership, identity: Identity, wall_s: float, entropy: Entropy) -> Membership | None:
    """The membership of an issuer with another year of its delegation; None where the network's key is not in the directory.

    Raises:
        StartError: what is in the directory cannot be used.
    """
    network = read_network(network_dir)
    if network is None or network.root != kept.root or (root := read_root(network_dir)) is None:
        return None
    return found_membership(network, root, identity, wall_s, entropy, kept)


def delegate(
    root: Identity,
    issuer: PeerId,
    wall_s: float,
    entropy: Entropy,
    rights: tuple[str, ...] = ALL_RIGHTS,
    owners: tuple[str, ...] = (),
) -> bytes:
    """Let a node act for the network for a year."""
    starts_s = int(wall_s) - CLOCKS_S
    return sign_delegation(
        root, Delegation(root.public_key, issuer, rights, owners, starts_s, starts_s + DELEGATED_S, serial_of(entropy))
    )


def serial_of(entropy: Entropy) -> int:
    """A serial number."""
    return int.from_bytes(entropy(8), "big") >> 1


def _fresh(state_dir: Path, kept: Membership, identity: Identity, wall_s: float, entropy: Entropy) -> Membership:
    """A kept membership, with a new certificate where the node may issue itself one.

    Raises:
        StartError: the certificate is none of this node's, or has ended.
    """
    admission = Admission(kept.root)
    try:
        member = admission.check(identity.peer_id, kept.shown, wall_s)
    except RemoteProtocolError as fault:
        if fault.code is not ErrorCode.EXPIRED or not kept.delegation:
            raise StartError(_why_not(state_dir, kept, identity, fault)) from fault
        member = None
    if not kept.delegation:
        return kept
    try:
        issuer = Issuer(identity, kept.delegation)
        owner, roles, admitted_s = (member.owner, member.roles, member.admitted_s) if member is not None else ("", (), None)
        shown = issuer.own(owner, roles, admitted_s, serial_of(entropy), wall_s)
    except ProtocolError as fault:
        if member is not None:
            return kept  # the delegation has ended, and the certificate has not
        raise StartError(_why_not(state_dir, kept, identity, fault)) from fault
    membership = files.shown_anew(kept, shown)
    _keep(state_dir, membership)
    return membership


def _why_not(state_dir: Path, kept: Membership, identity: Identity, fault: ProtocolError) -> str:
    return (
        f"node {peer_id_text(identity.peer_id)} ({state_dir}) is no member of network {kept.name!r} ({fault.detail}): let an "
        "issuer make an invitation (isochrone invite) and type here `isochrone join TOKEN`, or go back to your own network "
        "with `isochrone network leave`"
    )


def _keep(state_dir: Path, membership: Membership) -> None:
    fault = files.write_membership(state_dir, membership)
    if fault is not None:
        raise StartError(f"{fault}: free the disk or choose another --state-dir")
