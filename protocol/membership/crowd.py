"""Whose connections are closed where there are too many: who came last goes first, and whom this node chose never goes.

A node through which many join is full of visitors: peers that it does not keep, though they may want to keep it. Past
`crowded_max` connections visitors leave for whoever comes next, once they had the time to fetch the table, so that they know whom
else to connect to: first those whose card is not known, then the newest. So a door stays open however many come, and who fills it
on purpose drives out other newcomers at most. Visitors that have been there for longer go last, and not for those whose visits
are over in a moment: else a rush in which nobody new may be asked to go yet would cost the oldest their places. Those never go
that this node chose to keep, that belong to its mesh of gossip, work for it or have work done here, or are suspected. Nor do
those who come back again and again take the places of others: after `visits_max` short visits in a row they are not let in for a
while, where many are.

Source: go-libp2p, `p2p/net/connmgr` (a high and a low water mark, a time of grace, protected peers); Leitão et al., "HyParView"
(DSN 2007): a full contact makes room for who joins.
Spec: docs/spec/07-membership.md, ISO-MEMBER-033 to 035.
"""

from collections.abc import Collection, Iterable, Sequence

from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.membership.events import MembershipConfig
from protocol.membership.roster import Link, Peer


def kept(connected: Iterable[tuple[PeerId, Peer]]) -> int:
    """How many of the connected peers this node wants to keep."""
    return sum(peer.link is not Link.NONE for _, peer in connected)


def superfluous(
    connected: Sequence[tuple[PeerId, Peer]], in_use: Collection[PeerId], config: MembershipConfig, now: float
) -> tuple[list[PeerId], int]:
    """Those whose connections neither end wants to keep and that had their time, and how many of them may go now.

    Args:
        connected: the connected peers, in the order of their ids.
        in_use: those among them whose connections are in use, and stay.
        config: the bounds.
        now: monotonic seconds.
    """
    surplus = [
        peer_id
        for peer_id, peer in connected
        if _is_visitor(peer) and not peer.kept_by_peer and _lasts_s(peer, now) >= config.surplus_after_s and peer_id not in in_use
    ]
    too_many = len(connected) - max(kept(connected), config.near_max + config.far_max)
    return surplus, max(0, min(len(surplus), config.surplus_at_once, too_many))


def seats_for_near(config: MembershipConfig) -> int:
    """How many are kept at most before one that dialled here is not kept for being near: the rest is for whom this node dials."""
    return max(config.near_max, config.connections_max - config.far_max - config.beyond_max - config.dials_max)


def knows_few(connected: Iterable[tuple[PeerId, Peer]], config: MembershipConfig) -> bool:
    """Whether so few of the connected peers have told a card that everybody who tells one is worth a dial.

    Peers without a card tell of nobody: however many of them have come, who knows nobody else still has to join.
    """
    return sum(bool(peer.addresses) for _, peer in connected) < config.small_mesh


def is_refused(count: int, peer: Peer | None, config: MembershipConfig, now: float, *, own: bool = False) -> bool:
    """Whether a peer that connects is not let in; the last places are for those whom this node dials itself.

    Args:
        count: how many are connected.
        peer: what is known of the one that comes, None for a stranger.
        config: the bounds.
        now: monotonic seconds.
        own: whether this node has dialled it.
    """
    if own:
        return count >= config.open_max
    limit = config.open_max - (config.open_max - config.crowded_max) // 4
    if count < config.crowded_max or count >= limit:
        return count >= limit
    return peer is not None and peer.turned_away >= config.visits_max and now < peer.shunned_until


def shunned_s(peer: Peer, config: MembershipConfig) -> float:
    """For how long a peer is left alone whose connection was closed as surplus, in seconds; longer where it never lasts."""
    return config.shunned_s * 2.0 ** min(max(peer.turned_away - 1, 0), config.shunned_doublings_max)


def backoff_s(config: MembershipConfig, luck: Luck, failures: int) -> float:
    """Until the next dial after so many that failed: exponential, with jitter so that peers do not dial in step."""
    ceiling_s = min(config.backoff_max_s, config.backoff_min_s * 2.0 ** min(failures, 16))
    return ceiling_s * luck.uniform(0.5, 1.0)


def leavers(
    connected: Iterable[tuple[PeerId, Peer]],
    in_use: Collection[PeerId],
    fed: Collection[PeerId],
    config: MembershipConfig,
    now: float,
) -> list[PeerId]:
    """Visitors that leave for who comes next, none while there is room enough.

    Args:
        connected: the connected peers, in any order.
        in_use: those among them whose connections are in use, and stay.
        fed: those among them that have fetched what they lacked, and may leave before the time of a visit is over.
        config: the bounds.
        now: monotonic seconds.

    Returns:
        As many as are too many and may go, and no more than change at once: first those who do not want to stay either, then
        those without a card, then the newest; and of those that have been here for long only as many as are too many without
        those whose visits are not over.
    """
    staying = [(peer_id, peer) for peer_id, peer in connected if not peer.leaving]
    too_many = len(staying) + 1 - config.crowded_max
    if too_many <= 0:
        return []
    arriving = 1  # whoever comes next
    passing: list[tuple[bool, bool, float, PeerId]] = []
    resident: list[tuple[float, PeerId]] = []
    for peer_id, peer in staying:
        if not _is_visitor(peer) or peer_id in in_use:
            continue
        lasts_s = _lasts_s(peer, now)
        if lasts_s < config.visit_s and peer_id not in fed:
            arriving += 1
        elif lasts_s >= config.resident_s and peer.kept_by_peer and peer.has_card:
            resident.append((lasts_s, peer_id))
        else:
            passing.append((peer.kept_by_peer, peer.has_card, lasts_s, peer_id))
    chosen = [peer_id for *_, peer_id in sorted(passing)[:too_many]]
    chosen += [peer_id for _, peer_id in sorted(resident)[: max(0, too_many - arriving - len(chosen))]]
    return chosen[: config.surplus_at_once]


def _is_visitor(peer: Peer) -> bool:
    """Whether this node does not want to keep a connection over which all is well."""
    return peer.link is Link.NONE and peer.suspected_since is None


def _lasts_s(peer: Peer, now: float) -> float:
    """For how long a peer has been connected."""
    return 0.0 if peer.connected_at is None else now - peer.connected_at
