"""What happened in a world: a hash over every output of every core, and the last events for people to read.

Source: TigerBeetle's VOPR and FoundationDB's simulator: one seed gives one history, and a hash of the history proves it.
"""

import hashlib
import struct
from collections import deque
from collections.abc import Callable

from protocol import gossip, membership, probe, suspicion
from protocol.identity import PeerId
from protocol.node import Output, RecordSealed
from protocol.records import RecordKind
from protocol.table import RecordKey, record_key

EVENTS_KEPT = 200
"""Events, a count: what fits a few screens and, at some forty events per node and second, the last moments of a small mesh."""

NOTED_MAX = 1024
"""Pieces that are hashed together, a count: one call for some 20 kB in place of one for each output."""

_STAMP = struct.Struct("<dI")
_NUMBER = struct.Struct("<d")


class Journal:
    """Takes in every output in order; `watch` is called with a line of text for each when it is set."""

    def __init__(self) -> None:
        self.names: dict[PeerId, str] = {}
        self.watch: Callable[[str], None] | None = None
        self._hasher = hashlib.sha256()
        self._noted: list[bytes] = []  # not yet hashed
        self._last: deque[tuple[float, int, Output | str]] = deque(maxlen=EVENTS_KEPT)

    def output(self, now: float, index: int, output: Output) -> None:
        """Notes one output of the core of process `index`."""
        noted = self._noted
        noted.append(_STAMP.pack(now, index))
        if isinstance(output, gossip.Send):  # no `match` for what is frequent: it costs more than all that is done here
            noted += (b"m", output.peer_id, output.payload)
        elif isinstance(output, probe.SendDatagram):
            noted += (b"d", output.peer, output.payload)
        elif isinstance(output, gossip.BeatHeard):
            noted += (b"b", output.peer_id)  # what it says was noted when it was sent
        elif isinstance(output, probe.SampleTaken):
            noted += (b"r", output.peer, _NUMBER.pack(output.rtt_s))
        else:
            noted.append(_bytes_of(output))
        if len(noted) >= NOTED_MAX:
            self._take_in()
        self._last.append((now, index, output))
        if self.watch is not None:
            self.watch(self._line(now, index, output))

    def note(self, now: float, index: int, text: str) -> None:
        """Notes something the world did to process `index`, or to no process in particular (-1)."""
        self._noted.append(f"{now!r} {index} {text}\n".encode())
        self._last.append((now, index, text))
        if self.watch is not None:
            self.watch(self._line(now, index, text))

    def digest(self) -> str:
        """The hash over everything noted so far."""
        self._take_in()
        return self._hasher.hexdigest()

    def _take_in(self) -> None:
        self._hasher.update(b"".join(self._noted))
        self._noted.clear()

    def last(self) -> list[str]:
        """The last events as text, oldest first."""
        return [self._line(*entry) for entry in self._last]

    def name_of(self, key: RecordKey) -> str:
        """Whose card has this key."""
        known = (name for peer, name in self.names.items() if record_key(peer, RecordKind.CARD) == key)
        return next(known, key.hex())

    def _line(self, now: float, index: int, what: Output | str) -> str:
        who = f"n{index}" if index >= 0 else "-"
        return f"{now:12.6f} {who:>6} {what if isinstance(what, str) else self._described(what)}"

    def _name(self, peer: PeerId) -> str:
        return self.names.get(peer, peer.hex()[-8:])

    def _described(self, output: Output) -> str:
        kind = type(output).__name__
        match output:
            case gossip.Send(peer_id, payload) | probe.SendDatagram(peer_id, payload):
                return f"{kind} to {self._name(peer_id)}, {len(payload)} bytes"
            case gossip.RecordAccepted(record, from_peer):
                who = self._name(record.peer_id)
                return f"{kind} {record.kind} {record.sequence} of {who} from {self._name(from_peer)}"
            case gossip.RecordExpired(record) | gossip.RecordEvicted(record) | RecordSealed(record):
                return f"{kind} {record.kind} {record.sequence} of {self._name(record.peer_id)}"
            case membership.Connect(target, _):
                return f"{kind} {target if isinstance(target, str) else self._name(target)}"
            case membership.Disconnect(peer_id, code) | gossip.Misbehaved(peer_id, code) | gossip.RecordRefused(peer_id, code):
                return f"{kind} {self._name(peer_id)} {code.name}"
            case probe.Misbehaved(peer_id, code, detail):
                return f"{kind} {self._name(peer_id)} {code.name}: {detail}"
            case membership.PeerLeft(peer_id, reason) | membership.PeerGone(peer_id, reason):
                return f"{kind} {self._name(peer_id)}: {reason}"
            case probe.SampleTaken(peer_id, rtt_s):
                return f"{kind} {self._name(peer_id)} {rtt_s * 1000.0:.3f} ms"
            case probe.PeerSuspected(peer_id, since):
                return f"{kind} {self._name(peer_id)}, silent since {since:.6f}"
            case suspicion.Doubted() | suspicion.Cleared() | suspicion.TellVerdict():
                return f"{kind} {self._said(output)}"
            case _:
                peer = getattr(output, "peer_id", None) or getattr(output, "peer", None)
                return kind if peer is None else f"{kind} {self._name(peer)}"

    def _said(self, output: suspicion.Doubted | suspicion.Cleared | suspicion.TellVerdict) -> str:
        match output:
            case suspicion.Doubted(key):
                return self.name_of(key)
            case suspicion.Cleared(key, heard):
                return f"{self.name_of(key)}, {'heard' if heard else 'run out'}"
            case suspicion.TellVerdict(accused):
                return ", ".join(self.name_of(key) for key, _ in accused) or "nobody"


def _bytes_of(output: Output) -> bytes:
    """The content of an output that is not frequent; nothing in it stands in an order that differs from run to run."""
    match output:
        case gossip.RecordAccepted(record, from_peer):
            return b"a" + from_peer + record.envelope
        case gossip.RecordExpired(record) | gossip.RecordEvicted(record):
            return b"x" + record.envelope
        case RecordSealed(record):
            return b"s" + record.envelope
        case gossip.Equivocated(kept, offered):
            return b"e" + kept.envelope + offered.envelope
        case _:
            return repr(output).encode()
