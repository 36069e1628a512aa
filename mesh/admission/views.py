"""Membership as it is shown: the JSON behind `isochrone status`, `isochrone peers` and `isochrone network show`."""

from mesh.admission.files import Membership
from mesh.admission.gate import Gate
from protocol.admission import Admission, Member, NoticeKind
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId, peer_id_text

DAY_S = 86_400
"""Seconds in a day: certificates last for days."""


def own_json(admission: Admission, membership: Membership, peer_id: PeerId, wall_s: float) -> dict[str, object]:
    """What a node is a member of, and for how long."""
    facts: dict[str, object] = {"network": admission.network_id, "name": membership.name}
    try:
        member = admission.check(peer_id, membership.shown, wall_s)
    except RemoteProtocolError as fault:
        return facts | {"standing": fault.code.name.lower(), "why": fault.detail}
    return facts | {
        "standing": "member",
        "owner": member.owner,
        "roles": list(member.roles),
        "is_issuer": bool(membership.delegation),
        "issued_by": peer_id_text(member.issuer),
        "days_left": round((member.ends_s - wall_s) / DAY_S, 1),
        "serves_as_home": membership.is_home,
    }


def gate_json(gate: Gate, peer_id: PeerId, wall_s: float) -> dict[str, object]:
    """The same of a running node, with what is wrong with its renewal, who turned it away, and who was put out."""
    facts = own_json(gate.admission, gate.membership, peer_id, wall_s)
    rows = notices_json(gate.admission, wall_s)["revoked"]
    more = {
        "renewal_failed": gate.renewal_fault,
        "turned_away": gate.away,
        "revoked": [f"{row['peer_id']}: {row['reason']}" if row["reason"] else row["peer_id"] for row in rows],
    }
    return facts | {name: value for name, value in more.items() if value}


def owner_json(gate: Gate, peer_id: PeerId, wall_s: float) -> dict[str, object]:
    """Whose a peer is."""
    member: Member | None = gate.admission.member(peer_id, wall_s)
    if member is None:
        return {"owner": "", "roles": [], "network": ""}
    return {"owner": member.owner, "roles": list(member.roles), "network": member.network_id}


def owner_of(gate: Gate, peer_id: PeerId, wall_s: float) -> str:
    """Who owns a peer, empty where that is not known."""
    member = gate.admission.member(peer_id, wall_s)
    return "" if member is None else member.owner


def notices_json(admission: Admission, wall_s: float) -> dict[str, list[dict[str, object]]]:
    """What was revoked, and which networks are let in."""
    revoked: list[dict[str, object]] = [
        {
            "peer_id": peer_id_text(entry.peer_id),
            "reason": entry.reason,
            "days_ago": round((wall_s - entry.revoked_s) / DAY_S, 1),
            "by": "the network's key" if notice.by_root else peer_id_text(notice.signer),
        }
        for notice in admission.notices()
        if notice.kind is NoticeKind.REVOCATIONS and notice.root == admission.root
        for entry in notice.revoked
        if wall_s < entry.until_s
    ]
    federated: list[dict[str, object]] = [
        {
            "network": network_id,
            "name": listed.name,
            "nodes_max": listed.nodes_max,
            "requests_max": listed.requests_max,
            "days_left": round((listed.until_s - wall_s) / DAY_S, 1),
        }
        for network_id, listed in sorted(admission.networks(wall_s).items())
    ]
    return {"revoked": revoked, "federated": federated}
