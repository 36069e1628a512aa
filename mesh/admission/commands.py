"""The commands of owners: `isochrone network …`, `isochrone invite` and `isochrone join`.

They work on files, whether the node runs or not: a running node looks at its files once a second and takes over what is newer.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from mesh.admission import files
from mesh.admission.entering import delegate, enter, found_membership
from mesh.admission.files import HOME_NAME, Membership, Network, locked, read_network, read_root, write_network
from mesh.admission.joining import join_network
from mesh.admission.views import notices_json, own_json
from mesh.advice import typed
from mesh.config import StartError, default_network_dir, default_state_dir
from mesh.nodefile import ClientError, NoNodeError, find_node
from mesh.store import KEY_FILE, Store, read_key
from mesh.tables import facts_table, rows_table
from protocol.admission import (
    Admission,
    AdmissionConfig,
    Federated,
    Issuer,
    Notice,
    NoticeKind,
    Revocation,
    Right,
    Token,
    delegation_text,
    network_id_of,
    open_delegation,
    parse_delegation,
    parse_network,
    parse_token,
    restore,
    sign_notice,
    sign_token,
    token_text,
)
from protocol.admission.config import ADDRESSES_MAX, ENTRIES_MAX, NAME_BYTES_MAX, REVOCATION_KEPT_S, TOKEN_ID_BYTES
from protocol.errors import ProtocolError
from protocol.identity import SEED_BYTES, Identity, PeerId, parse_peer_id, peer_id_text
from protocol.multiaddr import Multiaddr, parse_multiaddr

DAY_S = 86_400
"""Seconds in a day."""

FEDERATED_S = 365 * DAY_S
"""How long a federation lasts unless told otherwise, in seconds: a year, as a delegation."""

ISSUERS_MAX = 4 * ADDRESSES_MAX
"""Addresses of issuers that a node keeps, a count: those of four invitations, half of what it can join by."""

_DURATION = re.compile(r"(\d{1,6})\s*([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": DAY_S, "w": 7 * DAY_S}

StateDir = Annotated[Path | None, Parameter(help="State directory of the node; the same as for `up`.")]
NetworkDir = Annotated[Path | None, Parameter(help="Where your private network is kept; the same as for `up`.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")]
KeyFile = Annotated[
    Path | None, Parameter(help="File of the network's key, where it lies elsewhere than in the network directory.")
]

network = App(name="network", help="Make, show and rule a private network: who may join, who is put out, who else is let in.")


@network.command
def create(
    *,
    name: Annotated[str, Parameter(help="What people call the network.")] = HOME_NAME,
    key: Annotated[Path | None, Parameter(help="Where the network's key goes (default: into the network directory).")] = None,
    state_dir: StateDir = None,
    network_dir: NetworkDir = None,
    as_json: Json = False,
) -> int:
    """Make a network of your own; this node becomes its first issuer.

    The key signs one thing now, that this node may admit and revoke others for a year, and can then be taken offline: write it
    to a stick with --key, or move the file away. Without this command the first `isochrone up` makes a network called "home".

    For example:

        isochrone network create --name acme
        isochrone network create --name acme --key /media/stick/acme-root.pem
    """
    state, directory = _state_dir(state_dir), _network_dir(network_dir)
    kept = files.read_membership(state)
    if kept is not None and not kept.is_home:
        raise StartError(f"this node ({state}) belongs to network {kept.name!r}: leave it first with `isochrone network leave`")
    identity = node_identity(state)
    with locked(directory):
        before = read_network(directory)
        if before is not None:
            raise StartError(
                f"{directory} holds the network {before.name!r} already ({before.network_id}), which serves as well; to have "
                "another one, name another directory with --network-dir, here and for `isochrone up`"
            )
        root = Identity.from_seed(os.urandom(SEED_BYTES))
        key_file = (key or directory / files.ROOT_FILE).expanduser().absolute()
        made = write_network(directory, root, _name(name), key_file)
    _keep(state, found_membership(made, root, identity, time.time(), os.urandom, None))
    facts = {"network": made.network_id, "name": made.name, "key": str(key_file), "issuer": peer_id_text(identity.peer_id)}
    facts["descriptor"] = made.descriptor
    if as_json:
        print(json.dumps(facts))
        return os.EX_OK
    _say(
        f"Network {made.name!r} is made: {made.network_id}",
        f"Its key is  {key_file}  : who has it owns the network. Keep a copy in a safe place; it may lie offline.",
        "Next",
        f"  {typed('up', state_dir=state_dir, network_dir=network_dir)}    # this node, its first issuer",
        f"  {typed('invite', state_dir=state_dir, network_dir=network_dir)}    # an invitation for another machine",
    )
    return os.EX_OK


@network.command
def show(*, state_dir: StateDir = None, network_dir: NetworkDir = None, as_json: Json = False) -> int:
    """Show the network of this node: its id, this node's certificate, what was revoked, which networks are let in.

    For example:

        isochrone network show
        isochrone network show --json
    """
    state = _state_dir(state_dir)
    kept = files.read_membership(state)
    if kept is None:
        own = read_network(_network_dir(network_dir))
        if own is None:
            raise ClientError("there is no network yet: the first `isochrone up` makes one, or `isochrone network create`")
        facts: dict[str, object] = {"network": own.network_id, "name": own.name, "descriptor": own.descriptor}
        facts["standing"] = "this node has not been started in it yet"
        return _show(facts, {"revoked": [], "federated": []}, as_json=as_json)
    admission = admission_of(state, kept)
    facts = own_json(admission, kept, node_identity(state).peer_id, time.time())
    facts["descriptor"] = Network(kept.root, kept.name).descriptor
    if kept.delegation:
        delegation = open_delegation(kept.delegation)
        facts["delegated"] = list(delegation.rights)
        facts["delegation_days_left"] = round((delegation.not_after_s - time.time()) / DAY_S, 1)
    facts["issuers"] = [str(address) for address in kept.issuers]
    return _show(facts, notices_json(admission, time.time()), as_json=as_json)


@network.command
def revoke(
    peer: Annotated[str, Parameter(help="Peer id of the node to put out.")],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for people.")] = "",
    key: KeyFile = None,
    state_dir: StateDir = None,
    network_dir: NetworkDir = None,
    as_json: Json = False,
) -> int:
    """Put a node out of the network, now and for good: its connections end within seconds, and no certificate brings it back.

    An issuer revokes with what was delegated to it; with the network's key (--key, or in the network directory) the right to
    act for the network is taken back too, and with it all certificates that the node gave out. A new invitation lets it in again.

    For example:

        isochrone network revoke 12D3KooW… --reason "machine sold"
    """
    peer_id, now_s = _peer(peer), int(time.time())
    ruler = _Ruler(state_dir, network_dir, key, Right.REVOKE)
    before = ruler.notice(NoticeKind.REVOCATIONS)
    standing = [entry for entry in (before.revoked if before else ()) if entry.peer_id != peer_id and now_s < entry.until_s]
    if len(standing) >= ENTRIES_MAX:
        raise ClientError(f"{ENTRIES_MAX} nodes are revoked already, the most that one signer can: revoke with the network's key")
    entry = Revocation(peer_id, now_s, now_s + int(REVOCATION_KEPT_S), _name(reason, "the reason"))
    ruler.tell(NoticeKind.REVOCATIONS, (*standing, entry))
    facts = {"revoked": peer_id_text(peer_id), "by": "the network's key" if ruler.by_root else peer_id_text(ruler.signer.peer_id)}
    return _done(facts, f"{peer_id_text(peer_id)} is revoked. {ruler.when_told}", as_json=as_json)


@network.command
def federate(
    descriptor: Annotated[
        str, Parameter(help="The other network as its owner's `isochrone network show` prints it (isonetwork1…).")
    ],
    /,
    *,
    nodes: Annotated[int, Parameter(help="Most of its nodes that are let in at a time.")] = 16,
    requests: Annotated[int, Parameter(help="Most requests of all its nodes together that a node works on at a time.")] = 8,
    for_: Annotated[str, Parameter(name="--for", help="How long, such as 30d.")] = "365d",
    end: Annotated[bool, Parameter(negative="", help="Let the network in no more.")] = False,
    key: KeyFile = None,
    state_dir: StateDir = None,
    network_dir: NetworkDir = None,
    as_json: Json = False,
) -> int:
    """Let the nodes of another network in, within a quota. Its owner has to do the same for yours.

    For example:

        isochrone network federate isonetwork1… --nodes 8 --requests 4
        isochrone network federate isonetwork1… --end
    """
    try:
        root, name = parse_network(descriptor)
    except ProtocolError as error:
        raise ClientError(error.detail) from error
    now_s = int(time.time())
    ruler = _Ruler(state_dir, network_dir, key, Right.FEDERATE)
    if root == ruler.root:
        raise ClientError("that is this node's own network; give the descriptor of the other one")
    before = ruler.notice(NoticeKind.FEDERATION)
    standing = [entry for entry in (before.federated if before else ()) if entry.root != root and now_s < entry.until_s]
    lets_in = () if end else (Federated(root, name, nodes, requests, now_s + seconds_of(for_)),)
    ruler.tell(NoticeKind.FEDERATION, (*standing, *lets_in))
    facts = {"network": network_id_of(root), "name": name, "let_in": not end, "nodes_max": nodes, "requests_max": requests}
    said = f"{name!r} is let in no more" if end else f"{name!r} is let in: up to {nodes} nodes and {requests} requests at a time"
    return _done(facts, f"{said}. {ruler.when_told}", as_json=as_json)


@network.command(name="delegate")
def delegate_(
    peer: Annotated[str | None, Parameter(help="Peer id of the issuer to be; this node if absent.")] = None,
    /,
    *,
    owner: Annotated[
        list[str] | None, Parameter(help="It may admit nodes of this owner alone, repeatable (default: of all).", negative="")
    ] = None,
    key: KeyFile = None,
    state_dir: StateDir = None,
    network_dir: NetworkDir = None,
    as_json: Json = False,
) -> int:
    """Let a node admit and revoke others for a year. Needs the network's key.

    For this node it is kept at once; for another it is printed, and that node takes it with `isochrone network accept`.

    For example:

        isochrone network delegate --key /media/stick/acme-root.pem
        isochrone network delegate 12D3KooW… --owner lab2
    """
    state, directory = _state_dir(state_dir), _network_dir(network_dir)
    root = read_root(directory, key)
    if root is None:
        raise StartError(f"the network's key is not in {directory}: name its file with --key")
    own = node_identity(state)
    peer_id = own.peer_id if peer is None else _peer(peer)
    try:
        delegation = delegate(root, peer_id, time.time(), os.urandom, owners=tuple(owner or ()))
    except ProtocolError as error:
        raise ClientError(error.detail) from error
    if peer_id == own.peer_id:
        return _accept(state, own, delegation, as_json=as_json)
    text = delegation_text(delegation)
    return _done({"delegation": text, "issuer": peer_id_text(peer_id)}, text, as_json=as_json)


@network.command
def accept(
    delegation: Annotated[str, Parameter(help="What `isochrone network delegate` printed (isodelegation1…).")],
    /,
    *,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> int:
    """Take a delegation: this node may admit and revoke others from now on.

    For example:

        isochrone network accept isodelegation1…
    """
    state = _state_dir(state_dir)
    try:
        data = parse_delegation(delegation)
    except ProtocolError as error:
        raise ClientError(error.detail) from error
    return _accept(state, node_identity(state), data, as_json=as_json)


@network.command
def leave(*, state_dir: StateDir = None, as_json: Json = False) -> int:
    """Leave the network that this node joined, and go back to your own at the next start.

    For example:

        isochrone network leave
    """
    state = _state_dir(state_dir)
    kept = files.read_membership(state)
    if kept is None or kept.is_home:
        raise ClientError("this node belongs to your own network; there is none to leave")
    (state / files.MEMBERSHIP_FILE).unlink(missing_ok=True)
    return _done(
        {"left": network_id_of(kept.root)}, f"Network {kept.name!r} is left; the next start is in your own.", as_json=as_json
    )


def invite(
    *,
    uses: Annotated[int, Parameter(help="How many machines may join by it.")] = 1,
    expires: Annotated[str, Parameter(help="For how long it is good, such as 12h or 7d.")] = "7d",
    owner: Annotated[str, Parameter(help="Whose machines they are.")] = "",
    role: Annotated[list[str] | None, Parameter(name="--roles", help="What they are there for, repeatable.", negative="")] = None,
    address: Annotated[
        list[str] | None,
        Parameter(help="MULTIADDR at which they reach this node, repeatable (default: those of the running node).", negative=""),
    ] = None,
    state_dir: StateDir = None,
    network_dir: NetworkDir = None,
    as_json: Json = False,
) -> int:
    """Print an invitation: whoever has it can join this node's network with it, so send it as you would a password.

    For example:

        isochrone invite
        isochrone invite --uses 8 --expires 2d --owner lab2
    """
    state = _state_dir(state_dir)
    identity, now_s = node_identity(state), int(time.time())
    kept = files.read_membership(state) or enter(state, _network_dir(network_dir), identity, now_s, os.urandom)
    if not kept.delegation:
        raise ClientError(f"this node may not admit others to {kept.name!r}: ask its owner for `isochrone network delegate`")
    issuer = Issuer(identity, kept.delegation)
    if not issuer.may_admit(owner, now_s):
        raise ClientError(f"this node may not admit nodes of owner {owner!r} now: its delegation has ended or names other owners")
    token = Token(
        kept.root,
        os.urandom(TOKEN_ID_BYTES),
        uses,
        now_s,
        now_s + seconds_of(expires),
        owner,
        tuple(role or ()),
        identity.peer_id,
        _addresses(state, address),
    )
    try:
        text = token_text(sign_token(identity, token))
    except ProtocolError as error:
        raise ClientError(f"such an invitation cannot be made: {error.detail}") from error
    if as_json:
        print(json.dumps({"token": text, "network": network_id_of(kept.root), "uses": uses, "expires_s": token.expires_s}))
        return os.EX_OK
    Console(stderr=True).print(
        f"Invitation to {kept.name!r} for {uses} machine{'s' if uses > 1 else ''}, good for {expires}. On the new machine:",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    print(f"isochrone join {text}")
    return os.EX_OK


def join(
    token: Annotated[list[str], Parameter(help="The invitation (isoinvite1…).", negative="")],
    /,
    *,
    name: Annotated[str, Parameter(help="What you call the network.")] = "",
    state_dir: StateDir = None,
    as_json: Json = False,
) -> int:
    """Join the network of an invitation; the node that runs here goes over to it, and so does the next start.

    The node that made the invitation has to run. What it gives this node is renewed by itself from then on.

    For example:

        isochrone join isoinvite1…
    """
    import trio

    state = _state_dir(state_dir)
    try:
        data = parse_token("".join(token))
    except ProtocolError as error:
        raise ClientError(error.detail) from error
    identity = node_identity(state)
    try:
        membership, owner = trio.run(join_network, data, identity, _name(name) if name else "")
    except BaseExceptionGroup as errors:
        if errors.split(KeyboardInterrupt)[0] is None:
            raise
        raise KeyboardInterrupt from None
    _keep(state, _with_before(membership, files.read_membership(state)))
    facts = {"network": network_id_of(membership.root), "peer_id": peer_id_text(identity.peer_id), "owner": owner}
    try:
        find_node(state)
        then = "The node that runs here goes over to it now."
    except NoNodeError:
        then = f"Start it:\n  {typed('up', state_dir=state_dir)}"
    return _done(facts, f"This node is a member of {facts['network']} now. {then}", as_json=as_json)


class _Ruler:
    """Who signs notices here: an issuer by its delegation, or the network's key."""

    def __init__(self, state_dir: Path | None, network_dir: Path | None, key: Path | None, right: Right) -> None:
        self._given = state_dir
        self._state = _state_dir(state_dir)
        directory = _network_dir(network_dir)
        kept = files.read_membership(self._state)
        root = read_root(directory, key)
        if kept is None:
            raise ClientError("this node belongs to no network yet: start it once with `isochrone up`")
        self.root = kept.root
        self.admission = admission_of(self._state, kept)
        if key is not None and root is not None and root.public_key != kept.root:
            raise ClientError(
                f"{key} is the key of {network_id_of(root.public_key)}, and this node belongs to {self.admission.network_id}"
            )
        self.by_root = root is not None and root.public_key == kept.root
        if self.by_root and root is not None:
            self.signer, self._delegation = root, b""
        else:
            if not kept.delegation or right not in open_delegation(kept.delegation).rights:
                raise ClientError(f"this node has no right to {right} in {kept.name!r}: use the network's key with --key")
            self.signer, self._delegation = node_identity(self._state), kept.delegation

    @property
    def when_told(self) -> str:
        """When others hear of it."""
        try:
            find_node(self._state)
        except NoNodeError:
            return f"Others hear of it when this node runs:  {typed('up', state_dir=self._given)}"
        return "The node that runs here tells the others now."

    def notice(self, kind: NoticeKind) -> Notice | None:
        """What this signer has said so far."""
        return self.admission.notice_of(kind, self.signer.peer_id)

    def tell(self, kind: NoticeKind, entries: tuple[Revocation, ...] | tuple[Federated, ...]) -> None:
        """Sign the whole list anew and keep it where the node finds it."""
        before, now_s = self.notice(kind), int(time.time())
        sequence = max(now_s, before.sequence + 1 if before is not None else 0)
        try:
            notice = sign_notice(self.signer, self.root, self._delegation, sequence, now_s, entries, kind)
            self.admission.take(notice.data, notice.delegation, now_s)
        except ProtocolError as error:
            raise ClientError(f"this cannot be told: {error.detail}") from error
        fault = files.write_notice(self._state, notice)
        if fault is not None:
            raise ClientError(f"{fault}: free the disk and try again")


def admission_of(state: Path, kept: Membership) -> Admission:
    """The checks of a node as its files have them."""
    admission = Admission(kept.root, AdmissionConfig())
    found = [files.read_notice(path) for path in files.notice_stamps(state)]
    restore(admission, found, time.time())
    restore(admission, found, time.time())  # those of federated networks, which are known now
    return admission


def node_identity(state: Path) -> Identity:
    """The key of the node of a state directory, made where there is none."""
    try:
        return read_key(state / KEY_FILE)
    except FileNotFoundError:
        with Store(state) as store:
            return store.identity()


def seconds_of(text: str) -> int:
    """A duration such as `90m`, `12h`, `7d` in seconds.

    Raises:
        ClientError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise ClientError(f"{text!r} is no duration: write a number and s, m, h, d or w, such as 12h or 7d")
    return int(match[1]) * _UNITS_S[match[2]]


def _accept(state: Path, identity: Identity, delegation: bytes, *, as_json: bool) -> int:
    """Keep a delegation, and a certificate under it."""
    try:
        issuer = Issuer(identity, delegation)
    except ProtocolError as error:
        raise ClientError(f"the delegation is not for this node: {error.detail}") from error
    root = issuer.delegation.root
    kept = files.read_membership(state)
    if kept is not None and kept.root != root and not kept.is_home:
        raise ClientError(f"this node belongs to network {kept.name!r}: leave it first with `isochrone network leave`")
    name = kept.name if kept is not None and kept.root == root else issuer.network_id
    owner = issuer.delegation.owners[0] if issuer.delegation.owners else ""
    try:
        shown = issuer.own(owner, (), None, int.from_bytes(os.urandom(8), "big") >> 1, time.time())
    except ProtocolError as error:
        raise ClientError(error.detail) from error
    issuers = kept.issuers if kept is not None and kept.root == root else ()
    is_home = kept.is_home if kept is not None and kept.root == root else False
    _keep(state, Membership(root, name, shown, delegation, issuers, is_home))
    return _done({"issuer_of": issuer.network_id}, f"This node is an issuer of {issuer.network_id} for a year.", as_json=as_json)


def _with_before(joined: Membership, before: Membership | None) -> Membership:
    """A membership got by an invitation, with what the node had of the same network: other issuers, and a delegation."""
    if before is None or before.root != joined.root:
        return joined
    issuers = tuple(dict.fromkeys((*joined.issuers, *before.issuers)))[:ISSUERS_MAX]
    return replace(joined, issuers=issuers, delegation=before.delegation)


def _addresses(state: Path, given: list[str] | None) -> tuple[Multiaddr, ...]:
    """Where the new machine finds this node: what was given, else what the running node tells, loopback last."""
    try:
        texts = given if given is not None else list(find_node(state).ready.addresses)
        found = [parse_multiaddr(text).with_peer(None) for text in texts]
    except NoNodeError as error:
        raise ClientError(f"{error}; or say with --address where it will be reached") from error
    except ProtocolError as error:
        raise ClientError(f"{error.detail}: write an address such as /ip4/192.0.2.7/udp/4001/quic-v1") from error
    if given is None:
        outside = [item for item in found if not item.host.startswith("127.") and item.host != "::1"]
        found = outside or found
    return tuple(found[:ADDRESSES_MAX])


def _peer(text: str) -> PeerId:
    try:
        return parse_peer_id(text)
    except ProtocolError as error:
        raise ClientError(f"{error.detail}; take the whole peer id from `isochrone peers --json`") from error


def _name(text: str, what: str = "the name") -> str:
    if not text.isprintable() or len(text.encode()) > NAME_BYTES_MAX:
        raise ClientError(f"{what} is longer than {NAME_BYTES_MAX} bytes or holds signs that cannot be shown")
    return text


def _state_dir(given: Path | None) -> Path:
    named = os.environ.get("ISOCHRONE_STATE_DIR")
    return (given or (Path(named) if named else default_state_dir(os.environ))).expanduser().absolute()


def _network_dir(given: Path | None) -> Path:
    named = os.environ.get("ISOCHRONE_NETWORK_DIR")
    return (given or (Path(named) if named else default_network_dir(os.environ))).expanduser().absolute()


def _keep(state: Path, membership: Membership) -> None:
    fault = files.write_membership(state, membership)
    if fault is not None:
        raise StartError(f"{fault}: free the disk or choose another --state-dir")


def _show(facts: dict[str, object], said: Mapping[str, object], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({**facts, **said}))
        return os.EX_OK
    console = Console()
    shown = {key: "none" if value in ([], "") else value for key, value in facts.items() if key != "descriptor"}
    if facts.get("is_issuer"):
        shown["issuers"] = ["this node", *_listed(facts["issuers"])]
    elif facts.get("issuers") == []:
        shown["issuers"] = "whom it is connected to; no address was given"
    console.print(facts_table("The network of this node", shown))
    for title, columns, none in (
        ("revoked", ("peer_id", "reason", "days_ago", "by"), "No node is revoked."),
        ("federated", ("network", "name", "nodes_max", "requests_max", "days_left"), "No other network is let in."),
    ):
        rows = said[title]
        console.print(rows_table(title.capitalize(), rows, columns) if isinstance(rows, list) and rows else none)
    _say("Owners of other networks let this one in with", f"  isochrone network federate {facts['descriptor']}")
    return os.EX_OK


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _done(facts: dict[str, object] | dict[str, str], said: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(facts))
    else:
        _say(said)
    return os.EX_OK


def _say(*lines: str) -> None:
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
