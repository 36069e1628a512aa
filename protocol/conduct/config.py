"""The accounts that are kept of each peer, and how much each may hold.

Spec: docs/spec/02-transport.md, section "Conduct".
"""

from dataclasses import dataclass
from enum import StrEnum


class Account(StrEnum):
    """What a peer is charged for."""

    BYTES = "bytes"
    """Bytes of its datagrams that brought no stream data: headers, acknowledgements, repetitions, junk under its keys."""
    FRAMES = "frames"
    """What came one by one and brought less than a small piece of a stream: DATAGRAM frames, resets, connection ids, crumbs."""
    STREAMS = "streams"
    """Streams that it opened."""
    VERIFICATIONS = "verifications"
    """Signatures that were verified, or would have been, for what it sent."""
    WORK = "work"
    """Requests begun for it; those answered to their end are given back, those it gave up are not."""
    IDS = "connection ids"
    """Connection ids that it gave up, for each of which it gets a new one."""
    SLOW = "slow datagrams"
    """Datagrams that brought no stream data and held the loop for long."""
    CPU = "cpu"
    """Seconds of a core spent on what it sent, less those that the stream data in it justify."""


STREAM_FAULT = 0.05
"""How much of a fault it is when one stream ends for what the peer wrote: sixty are forgiven at once, for an honest program that
writes requests this node cannot read does so with each of them, and it hears each time why."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """A token bucket.

    Attributes:
        rate_per_s: what grows back each second.
        burst: what may be taken at once.
        debt_max: how much more may be refused before the peer counts as flooding.
    """

    rate_per_s: float
    burst: float
    debt_max: float = 0.0


@dataclass(frozen=True, slots=True)
class ConductConfig:
    """What a peer may cost, and how long it is turned away.

    Attributes:
        wasted_bytes: bytes that bring no stream data. A receiver of 100 MB/s sends 2 MB/s of acknowledgements, one for two
            packets; what exceeds the allowance is dropped, as a full queue in the network would.
        frames: a probe is one, and so is a token that fills a datagram of its own. An engine with a hundred slots writes 4,000
            tokens a second.
        streams: streams opened, but for those whose request was answered to its end: guards against rapid reset. A stream costs
            this node 20 µs in the library and 100 µs with its task.
        verifications: charged by the size of what comes, one for 256 bytes, before it is read; gossip counts true records, and
            more strictly, but only within one connection. An Ed25519 verification takes 160 µs, so this is at most 5 % of a core
            over time. The burst is 10 MB: all that a network of 5,000 nodes has to tell, twice.
        work: requests begun and not answered to their end, because the peer gave them up or they failed: one costs up to 0.8 ms
            before an engine sees it, so this is at most 8 % of a core over time. Beyond it requests are refused.
        ids: an honest peer gives one up when its address changes.
        slow: what a library does for one datagram may grow with all those before (a list that is searched); the growth ends here,
            long before the account of the CPU would feel it. A pause of the garbage collector hits anybody, rarely.
        slow_s: from which time on a datagram is slow, in seconds of a core: twenty times what one takes, less than half of 5 ms.
        cpu: what comes to a fifth of a core over five seconds, and half of that for ever.
        cpu_s_per_byte: seconds of a core that each byte of stream data explains, so that a bulk transfer at full speed is no
            offence: aioquic takes 50 ns, on a machine half as fast 100.
        small_bytes: a piece of stream data below this size counts as a frame.
        faults: broken rules that are forgiven: three at once, one more every two minutes. The next one bans.
        banned_per_prefix: peers of one prefix banned that are forgiven it; the next one bans the prefix, for peer ids are free.
        ban_s: how long a ban lasts, in seconds: long enough to be no bargain, short enough that an error heals by itself.
        peers_max: accounts kept, of connected peers and of the latest that were: those of twice the connections a node has.
        bans_max: peers banned at once; the ban that ends soonest gives way.
        prefix_bans_max: prefixes banned at once; the same.
    """

    wasted_bytes: Allowance = Allowance(4 * 1024 * 1024, 32 * 1024 * 1024, 32 * 1024 * 1024)
    frames: Allowance = Allowance(10_000.0, 20_000.0, 20_000.0)
    streams: Allowance = Allowance(100.0, 1000.0)
    verifications: Allowance = Allowance(200.0, 40_000.0, 10_000.0)
    work: Allowance = Allowance(100.0, 1000.0, 500.0)
    ids: Allowance = Allowance(1.0, 64.0)
    slow: Allowance = Allowance(0.5, 20.0)
    slow_s: float = 0.002
    cpu: Allowance = Allowance(0.1, 0.5)
    cpu_s_per_byte: float = 100e-9
    small_bytes: int = 64
    faults: Allowance = Allowance(1 / 120, 3.0)
    banned_per_prefix: Allowance = Allowance(1 / 600, 3.0)
    ban_s: float = 600.0
    peers_max: int = 1024
    bans_max: int = 4096
    prefix_bans_max: int = 1024

    def allowance(self, account: Account) -> Allowance:
        """The bucket of an account."""
        match account:
            case Account.BYTES:
                return self.wasted_bytes
            case Account.FRAMES:
                return self.frames
            case Account.STREAMS:
                return self.streams
            case Account.VERIFICATIONS:
                return self.verifications
            case Account.WORK:
                return self.work
            case Account.IDS:
                return self.ids
            case Account.SLOW:
                return self.slow
            case Account.CPU:
                return self.cpu
