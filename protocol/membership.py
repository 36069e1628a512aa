"""Who is in the mesh right now, and whom to connect to.

The machine learns addresses from the bootstrap list and from cards, keeps a connection to every peer it knows up to
`connections_max`, dials again with exponential back-off, and says of each peer whether work may be sent to it. Three sources tell
that a peer lives: an open connection whose probes are answered, a fresh beat for a peer without a connection, and nothing else. A
peer whose probes went unanswered, or who said goodbye, stays away until it is connected again: gossip of its last words that is
still under way cannot bring it back.

When two peers learn of each other at once, both would dial. The one with the smaller peer id dials first and the other waits
`dial_polite_s`, so that in the common case only one connection is made.

Source: Das et al., "SWIM" (DSN 2002), for the separation of failure detection from dissemination.
Spec: docs/spec/04-gossip.md, section "Membership".
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Bounds and intervals; seconds unless the name says otherwise."""

    connections_max: int = 64
    """Connections a node opens by itself: 64 x 143 KiB of memory (measured for aioquic) is 9 MiB."""
    dials_max: int = 8
    """Dials under way at once, so that a node joining a large mesh does not flood its own uplink."""
    peers_max: int = 4096
    """Peers remembered with their addresses."""
    bootstrap_max: int = 64
    """Bootstrap addresses."""
    backoff_min_s: float = 0.5
    backoff_max_s: float = 30.0
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


_FAILURES_COUNTED = {
    ErrorCode.GOODBYE: 3,
    ErrorCode.MALFORMED: 6,
    ErrorCode.TOO_LARGE: 6,
    ErrorCode.BAD_SIGNATURE: 6,
    ErrorCode.WRONG_NETWORK: 6,
    ErrorCode.FLOODING: 6,
}
"""Failed dials that the end of a connection counts as, by its code: there is no hurry to call back who has just left, and none
at all after a fault of either side, for it would be the same again half a second later."""

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
    connected: bool = False
    suspected_since: float | None = None
    gone_because: str | None = None
    beat_at: float | None = None
    joined: bool = False


@dataclass(slots=True)
class _Dial:
    """The state of dialling one target."""

    not_before: float
    failures: int = 0
    under_way: bool = False


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
        self._dials: dict[Target, _Dial] = {}
        self._bootstrap: dict[str, Multiaddr] = {}
        self._outputs: deque[Output] = deque()

    # What happened

    def add_bootstrap(self, addresses: Iterable[Multiaddr], now: float) -> None:
        """Adds addresses to join by; they are dialled until connected, for as long as the node runs."""
        for address in addresses:
            if address.peer_id == self._own or len(self._bootstrap) >= self._config.bootstrap_max:
                continue
            self._bootstrap[str(address)] = address
            self._dials.setdefault(address.peer_id or str(address), _Dial(now))
        self._advance(now)

    def handle_card(self, peer_id: PeerId, addresses: tuple[Multiaddr, ...], now: float) -> None:
        """Learns where a peer can be reached."""
        peer = self._peer(peer_id)
        if peer is None:
            return
        peer.addresses = addresses
        if not peer.connected and addresses:
            polite_s = 0.0 if self._own < peer_id else self._config.dial_polite_s
            self._dials.setdefault(peer_id, _Dial(now + polite_s))
        self._advance(now)

    def handle_beat(self, peer_id: PeerId, now: float) -> None:
        """Hears that a peer lived a moment ago."""
        peer = self._peer(peer_id)
        if peer is not None:
            peer.beat_at = now
            self._judge(peer_id, peer, now)

    def handle_connected(self, peer_id: PeerId, now: float, target: Target | None = None) -> None:
        """Notes an open connection.

        Args:
            peer_id: who is at the other end, as TLS has proven.
            now: monotonic seconds.
            target: the target of the `Connect` that led here; None when the peer dialled.
        """
        if target is not None:
            self._dials.pop(target, None)
        if isinstance(target, str) and target in self._bootstrap:
            if peer_id == self._own:
                del self._bootstrap[target]
            else:
                self._bootstrap[target] = self._bootstrap[target].with_peer(peer_id)
        peer = self._peer(peer_id)
        if peer is not None:
            peer.connected, peer.suspected_since, peer.gone_because = True, None, None
            self._dials.pop(peer_id, None)
            self._judge(peer_id, peer, now)
        self._advance(now)

    def handle_disconnected(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Notes that the connection is no more; a goodbye takes the peer out at once."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        peer.connected, peer.suspected_since = False, None
        if code is ErrorCode.GOODBYE:
            peer.gone_because = "said goodbye"
        elif peer.gone_because is None:
            peer.gone_because = "connection closed"
        failures = _FAILURES_COUNTED.get(code, 0)
        if self._addresses(peer_id):
            self._dials[peer_id] = _Dial(now + self._backoff(failures), failures)
        self._judge(peer_id, peer, now)
        self._advance(now)

    def handle_dial_failed(self, target: Target, now: float) -> None:
        """Notes a dial that led nowhere; the next try comes after the back-off."""
        dial = self._dials.get(target)
        if dial is None:
            return
        dial.under_way = False
        dial.failures += 1
        dial.not_before = now + self._backoff(dial.failures)
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
        """Drops a peer whose card has expired, unless it is connected."""
        peer = self._peers.get(peer_id)
        if peer is not None and not peer.connected:
            if peer.joined:
                self._outputs.append(PeerLeft(peer_id, "its card expired"))
            del self._peers[peer_id]
            self._dials.pop(peer_id, None)

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
        peer = self._peers.get(peer_id)
        return peer is not None and peer.connected

    def connected(self) -> list[PeerId]:
        """The connected peers, in the order of their ids."""
        return sorted(peer_id for peer_id, peer in self._peers.items() if peer.connected)

    # Time and outputs

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        waiting = [dial.not_before for dial in self._dials.values() if not dial.under_way]
        fresh = [
            peer.beat_at + self._config.beat_fresh_s
            for peer in self._peers.values()
            if peer.joined and not peer.connected and peer.beat_at is not None
        ]
        return min(waiting + fresh, default=None)

    def handle_timer(self, now: float) -> None:
        """Starts the dials that are due and takes out peers that fell silent."""
        for peer_id, peer in self._peers.items():
            if peer.joined and not peer.connected:
                self._judge(peer_id, peer, now)
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
        """Forgets one who came and went without a word: identities cost nothing, and may not keep out those who serve."""
        for peer_id, peer in self._peers.items():
            if not peer.connected and not peer.addresses and peer.beat_at is None:
                del self._peers[peer_id]
                return True
        return False

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
        jitter: float = self._luck.uniform(0.5, 1.0)
        return ceiling * jitter

    def _advance(self, now: float) -> None:
        """Starts every dial that is due, within the bounds."""
        under_way = sum(dial.under_way for dial in self._dials.values())
        connected = sum(peer.connected for peer in self._peers.values())
        for address in self._bootstrap.values():
            # A bootstrap peer that was lost is dialled again even when its card has expired.
            known = address.peer_id
            if known is not None and not self.is_connected(known):
                self._dials.setdefault(known, _Dial(now))
        for target, dial in list(self._dials.items()):
            if dial.under_way or dial.not_before > now:
                continue
            if under_way >= self._config.dials_max or under_way + connected >= self._config.connections_max:
                dial.not_before = now + self._config.backoff_min_s
                continue
            addresses = self._addresses(target)
            if not addresses or (not isinstance(target, str) and self.is_connected(target)):
                del self._dials[target]
                continue
            dial.under_way = True
            under_way += 1
            self._outputs.append(Connect(target, addresses))

    def _addresses(self, target: Target) -> tuple[Multiaddr, ...]:
        """All addresses known for a target, the peer's own word first."""
        if isinstance(target, str):
            known = self._bootstrap.get(target)
            return () if known is None else (known,)
        peer = self._peers.get(target)
        own_word = peer.addresses if peer is not None else ()
        told = tuple(address for address in self._bootstrap.values() if address.peer_id == target)
        return own_word + tuple(address for address in told if address not in own_word)
