"""Who is in the mesh right now, and whom to connect to.

The machine learns addresses from the bootstrap list and from cards. While the mesh is small a node connects to everybody; in a
larger one to a few peers at random (far links, which keep the mesh in one piece) and to those that are nearest (near links,
over which beats travel), as `handle_ranking` names them now and then; in one of which it holds only a part also to a few that are
beyond that part, to ask them for what is not found in it. A connection that neither end wants to keep is closed when there are
too many, in a crowd (`crowd`) also one that only the other end keeps; past `open_max` nobody is let in. Dials that fail are
tried again with exponential back-off; of a peer that was connected before, one does not count: it may be lost on the way.

Of each peer the machine says whether work may be sent to it. What this node measures itself comes first: a connected peer is
alive while it answers, suspected when it does not, and gone `gone_after_s` later; the connection is kept for `linger_s` more,
so that a path that heals heals at once. A peer without a connection is alive while its card is known, nobody doubts it and it
could be reached when last dialled. Who said goodbye is gone at once, who is gone for `forget_after_s` is forgotten.

When two peers learn of each other at once, both would dial. The one with the smaller peer id dials first and the other waits
`dial_polite_s`, so that in the common case only one connection is made. A peer whose connections do not last is dialled as
seldom as one that cannot be reached. Dials that are due while no connection is free wait without being looked at. Peers that
were connected once, and bootstrap addresses, wait in a line of their own: they go first, and while one of them waits the others
have half of the dials, for anybody can invent peers that nobody can reach.

Source: A. Das, I. Gupta, A. Motivala, "SWIM", DSN 2002 (suspicion before death, detection apart from dissemination); J.
Leitão, J. Pereira, L. Rodrigues, "HyParView", DSN 2007 (few random connections keep an overlay whole).
Spec: docs/spec/07-membership.md.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.membership.bootstrap import Bootstrap
from protocol.membership.crowd import backoff_s, is_refused, knows_few, leavers, seats_for_near, shunned_s, superfluous
from protocol.membership.events import (
    Connect,
    Disconnect,
    KeepLink,
    MembershipConfig,
    Output,
    PeerForgotten,
    PeerGone,
    PeerJoined,
    PeerLeft,
    Standing,
    Target,
)
from protocol.membership.roster import SILENT, Link, Peer, Roster
from protocol.multiaddr import Multiaddr
from protocol.timers import TimerQueue


class Membership:
    """The machine; see the module's docstring."""

    def __init__(self, config: MembershipConfig, own: PeerId, luck: Luck) -> None:
        """Starts with no peers; `own` is this node's peer id, never dialled, and `luck` for back-offs and far links."""
        self._config = config
        self._own = own
        self._luck = luck
        self._peers = Roster()
        self._connected: set[PeerId] = set()
        self._failures: dict[Target, int] = {}  # of every target that waits to be dialled or is being dialled
        self._waiting: TimerQueue[Target] = TimerQueue()  # who is known to exist: bootstrap addresses and who was connected
        self._unproven: TimerQueue[Target] = TimerQueue()  # all others that are to be dialled
        self._under_way: TimerQueue[Target] = TimerQueue()  # with the time at which the dial is given up
        self._declining: TimerQueue[PeerId] = TimerQueue()  # when a silent peer falls to its next stage
        self._bootstrap = Bootstrap(config.bootstrap_max)
        self._seats = 0  # connections that this node wants to keep
        self._ranked_at = float("-inf")
        self._outputs: deque[Output] = deque()
        self.outputs = self._outputs  # for who drains several machines at once

    # What happened

    def add_bootstrap(self, addresses: Iterable[Multiaddr], now: float) -> None:
        """Adds addresses to join by; they are dialled until connected, for as long as the node runs."""
        for address in addresses:
            if address.peer_id == self._own or not self._bootstrap.add(address):
                continue
            target = address.peer_id or str(address)
            if target not in self._failures and target not in self._connected:
                self._wait(target, now, 0)
        self._advance(now)

    def handle_card(self, peer_id: PeerId, addresses: tuple[Multiaddr, ...], now: float, *, renewed: bool = False) -> None:
        """Learns where a peer can be reached.

        Args:
            peer_id: whose card it is.
            addresses: where it can be dialled.
            now: monotonic seconds.
            renewed: whether the card shows a greater incarnation than was known: whoever was gone is back.
        """
        peer = self._peer(peer_id)
        if peer is None:
            return
        moved = addresses != peer.addresses
        peer.addresses, peer.has_card = addresses, True
        if renewed and not peer.connected:
            self._absolve(peer_id, peer)
        if (
            self._is_small()
            and addresses
            and not peer.connected
            and peer_id not in self._under_way
            and (moved or renewed or not (peer_id in self._waiting or peer_id in self._unproven))
        ):
            line = self._line_of(peer_id)
            line.discard(peer_id)
            spread_s: float = self._luck.uniform(0.0, self._config.dial_spread_s * len(line))
            self._wait(peer_id, now + self._polite_s(peer_id) + spread_s, peer.failures)
        self._judge(peer_id, peer, now)
        self._advance(now)

    def make_room(self, now: float, in_use: Collection[PeerId], fed: Collection[PeerId]) -> None:
        """Has some go for who comes next, where many are connected; `in_use` and `fed` are those of `crowd.leavers`."""
        for peer_id in leavers(self._here(), in_use, fed, self._config, now):
            self._peers[peer_id].leaving = True
            self._outputs.append(Disconnect(peer_id, ErrorCode.SURPLUS))

    def handle_connected(self, peer_id: PeerId, now: float, target: Target | None = None) -> None:
        """Notes an open connection; the same one may be noted again, with the target of a dial that ended on it.

        Where it may not be open it is closed, and the peer does not count as connected. `target` is that of the `Connect` that
        led here; None when the peer dialled.
        """
        strange = peer_id != self._own and peer_id not in self._connected
        if strange and is_refused(len(self._connected), self._peers.get(peer_id), self._config, now, own=target is not None):
            if target is not None:
                self._drop_dial(target)
            self._outputs.append(Disconnect(peer_id, ErrorCode.SURPLUS))
            self._advance(now)
            return
        failures = 0 if target is None else self._drop_dial(target)
        if isinstance(target, str):
            self._bootstrap.meet(target, peer_id, self._own)
        if (peer := self._peer(peer_id)) is not None:
            failures = max(failures, self._drop_dial(peer_id))
            if peer.connected_at is None:
                peer.connected_at, peer.failures = now, max(peer.failures, failures)
                peer.kept_by_peer, peer.proven, peer.missed = False, True, False
                self._connected.add(peer_id)
                self._choose_link(peer_id, peer, dialled=target is not None)
            elif peer.link is not Link.NONE:
                self._outputs.append(KeepLink(peer_id, keeps=True))  # a new stream, or another life of the peer
            peer.dialled = peer.dialled or target is not None
            peer.suspected_since, peer.gone_because, peer.in_question = None, None, False
            self._declining.discard(peer_id)
            self._judge(peer_id, peer, now)
        self._advance(now)

    def handle_disconnected(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Notes that the connection is no more; a goodbye takes the peer out at once, a surplus connection says nothing."""
        peer = self._peers.get(peer_id)
        if peer is None or peer.connected_at is None:
            return
        settled = now - peer.connected_at >= self._config.settled_s
        surplus = code is ErrorCode.SURPLUS and peer.suspected_since is None
        peer.wanted = peer.link is not Link.NONE and not surplus
        self._seats -= peer.link is not Link.NONE
        peer.connected_at, peer.link, peer.in_question, peer.leaving, peer.dialled = None, Link.NONE, False, False, False
        self._connected.discard(peer_id)
        peer.turned_away = peer.turned_away + 1 if surplus and not settled else 0
        if surplus:
            peer.shunned_until = now + shunned_s(peer, self._config)
            if self._bootstrap.leads_to(peer_id) and knows_few(self._here(), self._config):  # it has not told of enough others
                self._wait(peer_id, now + backoff_s(self._config, self._luck, peer.turned_away), 0)
            self._judge(peer_id, peer, now)
            self._advance(now)
            return
        peer.suspected_since = None
        if code is ErrorCode.GOODBYE:
            peer.gone_because = "said goodbye"
        elif peer.gone_because is None:
            peer.gone_because = "connection closed"
        peer.failures = 0 if settled else peer.failures + 1
        if code is ErrorCode.GOODBYE:
            peer.failures = max(peer.failures, self._config.goodbye_failures)
        self._declining.set(peer_id, now + self._config.forget_after_s)
        if self._addresses(peer_id):
            self._wait(peer_id, now + backoff_s(self._config, self._luck, peer.failures), peer.failures)
        self._judge(peer_id, peer, now)
        self._advance(now)

    def handle_sought(self, peer_id: PeerId, now: float) -> bool:
        """Has a peer that may be dialled dialled at once, since a request may go to it; whether it is being dialled now."""
        if peer_id not in self._under_way and self._may_be_chosen(peer_id, now) and self._may_dial() and self._addresses(peer_id):
            self._peers[peer_id].wanted = True
            self._wait(peer_id, now, 0)
            self._advance(now)
        return peer_id in self._under_way

    def handle_dial_failed(self, target: Target, now: float) -> None:
        """Notes a dial that led nowhere; the next try comes after the back-off."""
        if target in self._under_way:
            self._give_up(target, now)
            self._advance(now)

    def handle_suspected(self, peer_id: PeerId, now: float) -> None:
        """Notes that the peer's probes went unanswered for a while."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.suspected_since is None:
            peer.suspected_since = now
            self._declining.set(peer_id, now + self._config.gone_after_s)
            self._judge(peer_id, peer, now)

    def handle_stall(self, lateness_s: float, now: float) -> None:
        """Notes that this node itself did not run for a while: nobody is declared dead for a silence that is its own."""
        for peer_id in self._declining.keys():  # noqa: SIM118 - a queue, no mapping
            due = self._declining.due_of(peer_id)
            if due is not None and self._peers[peer_id].gone_because is None:
                self._declining.set(peer_id, max(due + lateness_s, now + self._config.hearing_s))

    def handle_recovered(self, peer_id: PeerId, now: float) -> None:
        """Notes that a suspected peer answers again."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.connected:
            peer.suspected_since, peer.gone_because, peer.in_question = None, None, False
            self._declining.discard(peer_id)
            self._drop_dial(peer_id)
            self._judge(peer_id, peer, now)

    def handle_doubted(self, peer_id: PeerId, now: float, *, heard: bool = False) -> None:
        """Notes that enough others hold the peer for silent; of a connected peer this node's own probes decide.

        Args:
            peer_id: who is doubted.
            now: monotonic seconds.
            heard: whether it answered this node more lately than others can have missed it.
        """
        peer = self._peers.get(peer_id)
        if peer is not None and peer.doubted_since is None:
            peer.doubted_since = now
            peer.in_question = peer.connected and not heard
            if not peer.connected and peer.gone_because is None:
                self._declining.set(peer_id, now + self._config.gone_after_s)
            self._judge(peer_id, peer, now)

    def handle_heard(self, peer_id: PeerId, now: float) -> None:
        """Notes that a connected peer has just answered a probe, whatever others say."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.in_question:
            peer.in_question = False
            self._judge(peer_id, peer, now)

    def handle_cleared(self, peer_id: PeerId, now: float, *, heard: bool) -> None:
        """Notes that enough others do not hold the peer for silent any more.

        Args:
            peer_id: who is doubted no more.
            now: monotonic seconds.
            heard: whether they hear it again, and who could not be reached here is tried again; otherwise what they said has run
                out, which brings back nobody who is gone.
        """
        peer = self._peers.get(peer_id)
        if peer is None or peer.doubted_since is None:
            return
        peer.doubted_since, peer.in_question = None, False
        if not peer.connected and (heard or peer.gone_because is None):
            self._absolve(peer_id, peer)
        self._judge(peer_id, peer, now)

    def handle_signed(self, peer_id: PeerId, signed_at: float, now: float) -> None:
        """Notes that a peer has signed something, at `signed_at` by this node's clock: who fell silent before that lives."""
        peer = None if self._peers.is_plain(peer_id) else self._peers.get(peer_id)
        if peer is None or peer.connected or peer.doubted_since is not None or peer.gone_because not in SILENT:
            return
        if peer.gone_at is not None and signed_at > peer.gone_at:
            self._absolve(peer_id, peer)
            if peer_id in self._waiting:  # whether it can be reached from here, too, is found out at once
                self._wait(peer_id, now, 0)
            self._judge(peer_id, peer, now)
            self._advance(now)

    def handle_kept(self, peer_id: PeerId, *, keeps: bool) -> None:
        """Notes whether the other end wants to keep a connection."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.connected:
            peer.kept_by_peer = keeps

    def handle_near(self, peer_id: PeerId) -> None:
        """Keeps a connection that a peer has made since the last ranking, because it is as near as those that were named then."""
        peer = self._peers.get(peer_id)
        if peer is None or peer.connected_at is None or peer.link is not Link.NONE or peer.connected_at < self._ranked_at:
            return
        if self._seats < seats_for_near(self._config) and not self.is_crowded:  # until enough are known everybody seems near
            self._set_link(peer_id, peer, Link.NEAR)

    def handle_ranking(
        self,
        nearest: Sequence[PeerId],
        in_use: Collection[PeerId],
        now: float,
        beyond: Sequence[PeerId] = (),
        seeming: Sequence[PeerId] = (),
    ) -> None:
        """Moves the connections toward the nearest peers.

        Args:
            nearest: the nearest peers by the best estimates, this node not among them, the nearest first.
            in_use: the connected peers whose connections are in use, which are kept.
            now: monotonic seconds.
            beyond: the peers beyond the part of a large mesh that the node holds; their random links keep no part in one piece.
            seeming: peers that may be as near and were not measured, the nearest first: where all the nearest are connected they
                are dialled to find out, and until that is known a connection to one of them stays what it is.
        """
        config, self._ranked_at = self._config, now
        near = dict.fromkeys(nearest[: config.near_max])
        outside, tried = dict.fromkeys(beyond), dict.fromkeys(seeming)
        places = config.beyond_max
        for peer_id in sorted(self._connected):
            peer = self._peers[peer_id]
            if peer_id in outside and peer_id not in near and not self._is_small():
                self._set_link(peer_id, peer, Link.BEYOND if places > 0 else Link.NONE)
                places -= 1
            elif peer.link is not Link.FAR and peer_id not in tried:
                self._set_link(peer_id, peer, Link.NEAR if peer_id in near or self._is_small() else Link.NONE)
        if not (self._is_small() and self._connected):  # who has lost everybody begins anew with some
            self._dial_some(near, tried, outside, now)
        surplus, count = superfluous(self._here(), in_use, config, now)
        for peer_id in self._luck.sample(surplus, count):
            self._outputs.append(Disconnect(peer_id, ErrorCode.SURPLUS))
        self._advance(now)

    def forget(self, peer_id: PeerId) -> None:
        """Drops a peer whose card has expired; of one that is connected, its addresses alone."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        peer.addresses, peer.has_card = (), False
        if peer.connected:
            return
        if peer.joined:
            self._outputs.append(PeerLeft(peer_id, "its card expired"))
        del self._peers[peer_id]
        self._declining.discard(peer_id)
        if not self._addresses(peer_id):  # a bootstrap peer is dialled for as long as the node runs
            self._drop_dial(peer_id)

    # What is known

    def standing(self, peer_id: PeerId, now: float) -> tuple[Standing, str]:
        """Says what this node thinks of a peer, with the reason in words."""
        if self._peers.is_plain(peer_id):
            return Standing.ALIVE, "known by its card"
        if (peer := self._peers.get(peer_id)) is None:
            return Standing.UNKNOWN, "never heard of"
        return peer.standing(now, unreached=self._failures.get(peer_id, 0) > 0)

    def is_connected(self, peer_id: PeerId) -> bool:
        """Whether a connection to the peer is open."""
        return peer_id in self._connected

    @property
    def is_crowded(self) -> bool:
        """Whether somebody may have to go for who comes next."""
        return len(self._connected) >= self._config.crowded_max

    def is_shunned(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer has closed a connection as surplus lately, and no other is to be had for being near."""
        peer = None if self._peers.is_plain(peer_id) else self._peers.get(peer_id)
        return peer is not None and not peer.connected and now < peer.shunned_until

    def may_be_near(self, peer_id: PeerId) -> bool:
        """Whether a connected peer may be kept for being near: in a crowd nobody comes to be kept by dialling here."""
        peer = self._peers[peer_id]
        return peer.link is not Link.NONE or peer.dialled or not self.is_crowded

    def connected(self) -> list[PeerId]:
        """The connected peers, in the order of their ids."""
        return sorted(self._connected)

    def listeners(self) -> list[PeerId]:
        """The connected peers that want to hear this node's beats, in the order of their ids."""
        return sorted(peer_id for peer_id in self._connected if self._peers[peer_id].kept_by_peer)

    def is_dialled(self, peer_id: PeerId) -> bool:
        """Whether a connected peer was dialled by this node."""
        return peer_id in self._connected and self._peers[peer_id].dialled

    def is_far(self, peer_id: PeerId) -> bool:
        """Whether a connected peer was chosen at random; in a small mesh everybody counts as that."""
        peer = self._peers.get(peer_id)
        return peer is not None and (peer.link is Link.FAR or len(self._peers) <= self._config.small_mesh)

    # Time and outputs

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        due = self._declining.next_due()
        if not self._failures:  # nobody is to be dialled, as is usual at rest
            return due
        for timers in (self._under_way, *self._open_lines()):
            other = timers.next_due()
            if other is not None and (due is None or other < due):
                due = other
        return due

    def handle_timer(self, now: float) -> None:
        """Starts the dials that are due, gives up those that take too long, and lets silent peers fall to their next stage."""
        while (silent := self._declining.pop_due(now)) is not None:
            self._decline(silent[0], now)
        if not self._failures:  # nobody is to be dialled, as is usual at rest
            return
        while (overdue := self._under_way.pop_due(now)) is not None:
            self._give_up(overdue[0], now)
        self._advance(now)

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        return self._outputs.popleft() if self._outputs else None

    # Helpers

    def _peer(self, peer_id: PeerId) -> Peer | None:
        """Finds or makes the entry of a peer; None for this node itself and when the table is full."""
        if peer_id == self._own:
            return None
        peer = self._peers.get(peer_id)
        if peer is None:
            if len(self._peers) >= self._config.peers_max and not self._make_room():
                return None
            peer = self._peers.add(peer_id)
        return peer

    def _make_room(self) -> bool:
        """Drops the longest known of the peers that are away, if there is one."""
        oldest = next((peer_id for peer_id in self._peers.away() if peer_id not in self._under_way), None)
        if oldest is not None:
            self.forget(oldest)
        return oldest is not None

    def _decline(self, peer_id: PeerId, now: float) -> None:
        """Suspected, gone, disconnected, forgotten: the next of these stages of a peer that stays silent."""
        peer, config = self._peers[peer_id], self._config
        if peer.gone_because is None:
            peer.gone_because, peer.gone_at = SILENT[0] if peer.connected else SILENT[1], now
            self._outputs.append(PeerGone(peer_id, peer.gone_because))
            self._declining.set(peer_id, now + (config.linger_s if peer.connected else config.forget_after_s))
            if peer.connected and self._addresses(peer_id):  # it may have been started again, and know nothing of the connection
                self._wait(peer_id, now + backoff_s(self._config, self._luck, 0), 0)
            self._judge(peer_id, peer, now)
        elif peer.connected:
            self._outputs.append(Disconnect(peer_id, ErrorCode.IDLE))
            self._declining.set(peer_id, now + config.linger_s)
        else:
            self._outputs.append(PeerForgotten(peer_id))
            self.forget(peer_id)

    def _absolve(self, peer_id: PeerId, peer: Peer) -> None:
        """Holds nothing against a peer that is away any more, a dial that failed before it came back included."""
        peer.gone_because, peer.gone_at, peer.failures, peer.missed = None, None, 0, False
        self._declining.discard(peer_id)
        if peer_id in self._failures:
            self._failures[peer_id] = 0

    def _is_small(self) -> bool:
        """Whether everybody who becomes known is dialled."""
        return len(self._connected) + len(self._under_way) < self._config.small_mesh

    def _polite_s(self, peer_id: PeerId) -> float:
        return 0.0 if self._own < peer_id else self._config.dial_polite_s

    def _choose_link(self, peer_id: PeerId, peer: Peer, *, dialled: bool) -> None:
        """Decides why a new connection is kept: the first that this node made are far links, for whom it knew first is chance."""
        if dialled and self._count(Link.FAR) < self._config.far_max:
            self._set_link(peer_id, peer, Link.FAR)
        elif dialled or len(self._connected) <= self._config.small_mesh:
            self._set_link(peer_id, peer, Link.NEAR)

    def _set_link(self, peer_id: PeerId, peer: Peer, link: Link) -> None:
        if (peer.link is Link.NONE) is not (link is Link.NONE):
            self._seats += 1 if peer.link is Link.NONE else -1
            self._outputs.append(KeepLink(peer_id, keeps=link is not Link.NONE))
        peer.link = link

    def _count(self, link: Link) -> int:
        return sum(self._peers[peer_id].link is link for peer_id in self._connected)

    def _here(self) -> list[tuple[PeerId, Peer]]:
        return [(peer_id, self._peers[peer_id]) for peer_id in sorted(self._connected)]

    def _dial_some(self, near: Collection[PeerId], tried: Iterable[PeerId], outside: Collection[PeerId], now: float) -> None:
        """Dials a few of the near that are not connected, then of those to be tried, and one at random where such are missing."""
        seen = dict.fromkeys((*near, *tried))
        chosen = [peer_id for peer_id in seen if self._may_be_chosen(peer_id, now)][: self._config.surplus_at_once]
        if self._count(Link.FAR) < self._config.far_max:
            others = [peer_id for peer_id in sorted(self._peers) if peer_id not in near and peer_id not in outside]
            self._choose_one(others, chosen, now)
        if outside and self._count(Link.BEYOND) < self._config.beyond_max:
            self._choose_one(outside, chosen, now)
        for peer_id in chosen:
            self._peers[peer_id].wanted = True
            self._wait(peer_id, now + self._polite_s(peer_id), 0)

    def _choose_one(self, peers: Iterable[PeerId], chosen: list[PeerId], now: float) -> None:
        """Adds one of the peers that may be dialled, at random, to those chosen."""
        able = [peer_id for peer_id in peers if peer_id not in chosen and self._may_be_chosen(peer_id, now)]
        if able:
            chosen.append(self._luck.choice(able))

    def _may_be_chosen(self, peer_id: PeerId, now: float) -> bool:
        if self._peers.is_plain(peer_id):
            return True
        peer = self._peers.get(peer_id)
        may = peer is not None and not peer.connected and peer_id not in self._failures and now >= peer.shunned_until
        return may and self.standing(peer_id, now)[0] is Standing.ALIVE

    def _judge(self, peer_id: PeerId, peer: Peer, now: float) -> None:
        """Says so when a peer comes into or falls out of the set that may be given work."""
        standing, why = self.standing(peer_id, now)
        if (alive := standing is Standing.ALIVE) and not peer.joined:
            peer.joined = True
            self._outputs.append(PeerJoined(peer_id))
        elif peer.joined and not alive:
            peer.joined = False
            self._outputs.append(PeerLeft(peer_id, why))
        if alive and peer_id not in self._failures:
            self._peers.put_away(peer_id, peer)

    def _wait(self, target: Target, until: float, failures: int) -> None:
        """Has a target dialled at a time, in place of whatever is under way."""
        self._drop_dial(target)
        self._failures[target] = failures
        self._line_of(target).set(target, until)

    def _drop_dial(self, target: Target) -> int:
        """Dials a target no more; returns how many dials of it have failed in a row."""
        for timers in (self._waiting, self._unproven, self._under_way):
            timers.discard(target)
        return self._failures.pop(target, 0)

    def _give_up(self, target: Target, now: float) -> None:
        """Has a target that was not reached dialled again later."""
        failures, peer = self._failures[target] + 1, None if isinstance(target, str) else self._peers.get(target)
        if peer is not None and peer.may_be_missed and failures == 1:
            peer.missed = True
            self._wait(target, now + backoff_s(self._config, self._luck, 0), 0)
            return
        self._wait(target, now + backoff_s(self._config, self._luck, failures), failures)
        if peer is not None and not isinstance(target, str):
            peer.failures, peer.missed = max(peer.failures, failures), False
            self._judge(target, peer, now)
        if isinstance(target, str) or failures < self._config.pinned_failures:
            return
        for text in self._bootstrap.unpin(target):
            self._wait(text, now + backoff_s(self._config, self._luck, failures), failures)

    def _may_dial(self) -> bool:
        """Whether one more dial is within the bounds."""
        under_way = len(self._under_way)
        may = under_way < self._config.dials_max and under_way + len(self._connected) < self._config.open_max
        return may and under_way + self._seats < self._config.connections_max

    def _is_proven(self, target: Target) -> bool:
        """Whether somebody is known to be, or to have been, where a dial leads."""
        if isinstance(target, str) or self._bootstrap.leads_to(target):
            return True
        return (peer := self._peers.get(target)) is not None and peer.proven

    def _line_of(self, target: Target) -> TimerQueue[Target]:
        return self._waiting if self._is_proven(target) else self._unproven

    def _open_lines(self) -> list[TimerQueue[Target]]:
        """The lines from which one more dial is within the bounds, the better one first."""
        if not self._may_dial():
            return []
        if not self._waiting:
            return [self._unproven]
        unproven = sum(not self._is_proven(target) for target in self._under_way.keys())  # noqa: SIM118 - a queue, no mapping
        return [self._waiting, self._unproven] if unproven < self._config.dials_max // 2 else [self._waiting]

    def _next_dial(self, now: float) -> Target | None:
        """Takes the next target that is due and may be dialled."""
        return next((due[0] for line in self._open_lines() if (due := line.pop_due(now)) is not None), None)

    def _advance(self, now: float) -> None:
        """Starts every dial that is due, within the bounds."""
        while (target := self._next_dial(now)) is not None:
            addresses = self._addresses(target)
            if addresses and self._is_worth_a_dial(target):
                self._under_way.set(target, now + self._config.dial_address_s * len(addresses))
                self._outputs.append(Connect(target, addresses, afresh=target in self._connected))
            else:
                del self._failures[target]
                if not isinstance(target, str) and (peer := self._peers.get(target)) is not None:
                    self._judge(target, peer, now)

    def _is_worth_a_dial(self, target: Target) -> bool:
        """Whether a target is still to be dialled: not every peer that became known while the mesh was small is."""
        if isinstance(target, str) or (peer := self._peers.get(target)) is None or self._bootstrap.leads_to(target):
            return True
        return peer.wanted or peer.gone_because is not None or peer.failures > 0 or self._is_small()

    def _addresses(self, target: Target) -> tuple[Multiaddr, ...]:
        """All addresses known for a target, the peer's own word first."""
        if isinstance(target, str):
            return self._bootstrap.at(target)
        own_word = () if (peer := self._peers.get(target)) is None else peer.addresses
        return own_word + tuple(address for address in self._bootstrap.of(target) if address not in own_word)
