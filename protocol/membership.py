"""Who is in the mesh right now, and whom to connect to.

The machine learns addresses from the bootstrap list and from cards, keeps a connection to every peer it knows up to
`connections_max`, dials again with exponential back-off, and says of each peer whether work may be sent to it. Three sources tell
that a peer lives: an open connection whose probes are answered, a fresh beat for a peer without a connection, and nothing else. A
peer whose probes went unanswered, or who said goodbye, stays away until it is connected again: gossip of its last words that is
still under way cannot bring it back.

When two peers learn of each other at once, both would dial. The one with the smaller peer id dials first and the other waits
`dial_polite_s`, so that in the common case only one connection is made. A peer whose connections do not last is dialled as
seldom as one that cannot be reached. Dials that are due while no connection is free wait without being looked at.

Source: Das et al., "SWIM" (DSN 2002), for the separation of failure detection from dissemination.
Spec: docs/spec/07-membership.md.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr
from protocol.timers import TimerQueue


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Bounds and intervals; seconds unless the name says otherwise."""

    connections_max: int = 64
    """Connections a node opens by itself: 64 x 143 KiB of memory (measured for aioquic) is 9 MiB."""
    dials_max: int = 8
    """Dials under way at once, so that a node joining a large mesh does not flood its own uplink."""
    peers_max: int = 4096
    """Peers remembered with their addresses; past it the longest known of those that are away make room."""
    bootstrap_max: int = 64
    """Bootstrap addresses."""
    backoff_min_s: float = 0.5
    backoff_max_s: float = 30.0
    settled_s: float = 5.0
    """A connection that ends sooner counts as a failed dial: ten times the shortest back-off."""
    goodbye_failures: int = 3
    """A goodbye counts as so many failed dials, 2 to 4 s of back-off: no hurry to call back who has just left."""
    dial_address_s: float = 10.0
    """A dial that is not answered for within this time per address has failed: name resolution, a handshake, a greeting."""
    dial_spread_s: float = 0.01
    """Each dial that waits puts off the next one by up to this at random, so that not all nodes choose the same peers."""
    pinned_failures: int = 3
    """After so many failed dials a bootstrap address given without a peer id may be somebody else's: a new key, a new node."""
    dial_polite_s: float = 0.3
    """How long the peer with the larger id leaves the dial to the other: more than a round trip within a continent."""
    beat_fresh_s: float = 3.0
    """A peer without a connection is alive for this long after a beat: three beat intervals."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Dial these addresses in turn; answer with `handle_connected` or `handle_dial_failed` for the same target."""

    target: "Target"
    addresses: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection to the peer."""

    peer_id: PeerId
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """The peer may be given work from now on."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer may not be given work any more; `reason` is for people."""

    peer_id: PeerId
    reason: str


Target = PeerId | str
"""Whom a dial is for: a peer, or the text of a bootstrap address whose peer is not known yet."""

Output = Connect | Disconnect | PeerJoined | PeerLeft


class Standing(StrEnum):
    """What a node thinks of a peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class _Peer:
    """Everything remembered of one peer."""

    addresses: tuple[Multiaddr, ...] = ()
    connected_at: float | None = None
    failures: int = 0  # dials that failed and connections that did not last, in a row
    suspected_since: float | None = None
    gone_because: str | None = None
    beat_at: float | None = None
    joined: bool = False

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return self.connected_at is not None


class Membership:
    """The machine; see the module's docstring."""

    def __init__(self, config: MembershipConfig, own: PeerId, luck: Luck) -> None:
        """Starts with no peers.

        Args:
            config: bounds and intervals.
            own: this node's peer id, never dialled.
            luck: randomness for the jitter of the back-off.
        """
        self._config = config
        self._own = own
        self._luck = luck
        self._peers: dict[PeerId, _Peer] = {}
        self._connected: set[PeerId] = set()
        self._failures: dict[Target, int] = {}  # of every target that waits to be dialled or is being dialled
        self._waiting: TimerQueue[Target] = TimerQueue()
        self._under_way: TimerQueue[Target] = TimerQueue()  # with the time at which the dial is given up
        self._fresh: TimerQueue[PeerId] = TimerQueue()  # until when a peer lives by its last beat
        self._bootstrap: dict[str, Multiaddr] = {}  # by their texts as given; the peer id is added when it is known
        self._outputs: deque[Output] = deque()

    # What happened

    def add_bootstrap(self, addresses: Iterable[Multiaddr], now: float) -> None:
        """Adds addresses to join by; they are dialled until connected, for as long as the node runs."""
        for address in addresses:
            if address.peer_id == self._own or len(self._bootstrap) >= self._config.bootstrap_max:
                continue
            self._bootstrap.setdefault(str(address), address)
            target = address.peer_id or str(address)
            if target not in self._failures and target not in self._connected:
                self._wait(target, now, 0)
        self._advance(now)

    def handle_card(self, peer_id: PeerId, addresses: tuple[Multiaddr, ...], now: float) -> None:
        """Learns where a peer can be reached."""
        peer = self._peer(peer_id)
        if peer is None:
            return
        moved = addresses != peer.addresses
        peer.addresses = addresses
        if addresses and not peer.connected and peer_id not in self._under_way and (moved or peer_id not in self._waiting):
            polite_s = 0.0 if self._own < peer_id else self._config.dial_polite_s
            self._waiting.discard(peer_id)
            spread_s: float = self._luck.uniform(0.0, self._config.dial_spread_s * len(self._waiting))
            self._wait(peer_id, now + polite_s + spread_s, peer.failures)
        self._advance(now)

    def handle_beat(self, peer_id: PeerId, now: float) -> None:
        """Hears that a peer lived a moment ago."""
        peer = self._peer(peer_id)
        if peer is not None:
            peer.beat_at = now
            self._judge(peer_id, peer, now)
            if peer.joined and not peer.connected:
                self._fresh.set(peer_id, now + self._config.beat_fresh_s)

    def handle_connected(self, peer_id: PeerId, now: float, target: Target | None = None) -> None:
        """Notes an open connection; the same one may be noted again, with the target of a dial that ended on it.

        Args:
            peer_id: who is at the other end, as TLS has proven.
            now: monotonic seconds.
            target: the target of the `Connect` that led here; None when the peer dialled.
        """
        failures = 0 if target is None else self._drop_dial(target)
        if isinstance(target, str) and target in self._bootstrap:
            if peer_id == self._own:
                del self._bootstrap[target]
            else:
                self._bootstrap[target] = self._bootstrap[target].with_peer(peer_id)
        peer = self._peer(peer_id)
        if peer is not None:
            failures = max(failures, self._drop_dial(peer_id))
            if peer.connected_at is None:
                peer.connected_at, peer.failures = now, max(peer.failures, failures)
                self._connected.add(peer_id)
            peer.suspected_since, peer.gone_because = None, None
            self._fresh.discard(peer_id)
            self._judge(peer_id, peer, now)
        self._advance(now)

    def handle_disconnected(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Notes that the connection is no more; a goodbye takes the peer out at once."""
        peer = self._peers.get(peer_id)
        if peer is None or peer.connected_at is None:
            return
        lasted_s = now - peer.connected_at
        peer.connected_at, peer.suspected_since = None, None
        self._connected.discard(peer_id)
        if code is ErrorCode.GOODBYE:
            peer.gone_because = "said goodbye"
        elif peer.gone_because is None:
            peer.gone_because = "connection closed"
        peer.failures = 0 if lasted_s >= self._config.settled_s else peer.failures + 1
        if code is ErrorCode.GOODBYE:
            peer.failures = max(peer.failures, self._config.goodbye_failures)
        if self._addresses(peer_id):
            self._wait(peer_id, now + self._backoff(peer.failures), peer.failures)
        self._judge(peer_id, peer, now)
        self._advance(now)

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
            self._judge(peer_id, peer, now)

    def handle_recovered(self, peer_id: PeerId, now: float) -> None:
        """Notes that a suspected peer answers again."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.suspected_since = None
            self._judge(peer_id, peer, now)

    def handle_lost(self, peer_id: PeerId, now: float) -> None:
        """Gives a silent peer up: its connection is closed without waiting for QUIC's idle timeout."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.connected:
            peer.gone_because = "stopped answering"
            self._outputs.append(Disconnect(peer_id, ErrorCode.IDLE))
            self._judge(peer_id, peer, now)

    def forget(self, peer_id: PeerId) -> None:
        """Drops a peer whose card has expired; of one that is connected, its addresses alone."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        peer.addresses = ()
        if peer.connected:
            return
        if peer.joined:
            self._outputs.append(PeerLeft(peer_id, "its card expired"))
        del self._peers[peer_id]
        self._fresh.discard(peer_id)
        if not self._addresses(peer_id):  # a bootstrap peer is dialled for as long as the node runs
            self._drop_dial(peer_id)

    # What is known

    def standing(self, peer_id: PeerId, now: float) -> tuple[Standing, str]:
        """Says what this node thinks of a peer, with the reason in words."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return Standing.UNKNOWN, "never heard of"
        if peer.suspected_since is not None:
            return Standing.SUSPECTED, f"no answer to probes, suspected for {now - peer.suspected_since:.1f} s"
        if peer.connected and peer.gone_because is None:
            return Standing.ALIVE, "connected"
        if peer.gone_because is not None:
            return Standing.GONE, peer.gone_because
        if peer.beat_at is not None and now < peer.beat_at + self._config.beat_fresh_s:
            return Standing.ALIVE, "heard through others"
        return Standing.GONE if peer.beat_at is not None else Standing.UNKNOWN, "no recent beat"

    def is_connected(self, peer_id: PeerId) -> bool:
        """Whether a connection to the peer is open."""
        return peer_id in self._connected

    def connected(self) -> list[PeerId]:
        """The connected peers, in the order of their ids."""
        return sorted(self._connected)

    # Time and outputs

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        timers = [self._fresh.next_due(), self._under_way.next_due()]
        if self._may_dial():
            timers.append(self._waiting.next_due())
        return min((timer for timer in timers if timer is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Starts the dials that are due, gives up those that take too long, and takes out peers that fell silent."""
        while (silent := self._fresh.pop_due(now)) is not None:
            self._judge(silent[0], self._peers[silent[0]], now)
        while (overdue := self._under_way.pop_due(now)) is not None:
            self._give_up(overdue[0], now)
        self._advance(now)

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        return self._outputs.popleft() if self._outputs else None

    # Helpers

    def _peer(self, peer_id: PeerId) -> _Peer | None:
        """Finds or makes the entry of a peer; None for this node itself and when the table is full."""
        if peer_id == self._own:
            return None
        peer = self._peers.get(peer_id)
        if peer is None:
            if len(self._peers) >= self._config.peers_max and not self._make_room():
                return None
            peer = self._peers[peer_id] = _Peer()
        return peer

    def _make_room(self) -> bool:
        """Drops the longest known of the peers that are away, if there is one."""
        away = (peer_id for peer_id, peer in self._peers.items() if not (peer.connected or peer.joined))
        oldest = next((peer_id for peer_id in away if peer_id not in self._under_way), None)
        if oldest is not None:
            self.forget(oldest)
        return oldest is not None

    def _judge(self, peer_id: PeerId, peer: _Peer, now: float) -> None:
        """Says so when a peer comes into or falls out of the set that may be given work."""
        standing, why = self.standing(peer_id, now)
        alive = standing is Standing.ALIVE
        if alive and not peer.joined:
            peer.joined = True
            self._outputs.append(PeerJoined(peer_id))
        elif peer.joined and not alive:
            peer.joined = False
            self._outputs.append(PeerLeft(peer_id, why))

    def _backoff(self, failures: int) -> float:
        """Exponential, with full jitter over its upper half so that peers do not dial in step."""
        ceiling = min(self._config.backoff_max_s, self._config.backoff_min_s * 2.0 ** min(failures, 16))
        return ceiling * self._luck.uniform(0.5, 1.0)

    def _wait(self, target: Target, until: float, failures: int) -> None:
        """Has a target dialled at a time, in place of whatever is under way."""
        self._failures[target] = failures
        self._under_way.discard(target)
        self._waiting.set(target, until)

    def _drop_dial(self, target: Target) -> int:
        """Dials a target no more; returns how many dials of it have failed in a row."""
        self._waiting.discard(target)
        self._under_way.discard(target)
        return self._failures.pop(target, 0)

    def _give_up(self, target: Target, now: float) -> None:
        """Has a target that was not reached dialled again later."""
        failures = self._failures[target] + 1
        self._wait(target, now + self._backoff(failures), failures)
        if isinstance(target, str) or failures < self._config.pinned_failures:
            return
        for text, address in self._bootstrap.items():
            if address.peer_id == target and text != str(address):
                self._bootstrap[text] = address.with_peer(None)
                self._wait(text, now + self._backoff(failures), failures)

    def _may_dial(self) -> bool:
        """Whether one more dial is within the bounds."""
        under_way = len(self._under_way)
        return under_way < self._config.dials_max and under_way + len(self._connected) < self._config.connections_max

    def _advance(self, now: float) -> None:
        """Starts every dial that is due, within the bounds."""
        while self._may_dial() and (due := self._waiting.pop_due(now)) is not None:
            target = due[0]
            addresses = self._addresses(target)
            if addresses:
                self._under_way.set(target, now + self._config.dial_address_s * len(addresses))
                self._outputs.append(Connect(target, addresses))
            else:
                del self._failures[target]

    def _addresses(self, target: Target) -> tuple[Multiaddr, ...]:
        """All addresses known for a target, the peer's own word first."""
        if isinstance(target, str):
            known = self._bootstrap.get(target)
            return () if known is None else (known,)
        peer = self._peers.get(target)
        own_word = peer.addresses if peer is not None else ()
        told = tuple(address for address in self._bootstrap.values() if address.peer_id == target)
        return own_word + tuple(address for address in told if address not in own_word)
