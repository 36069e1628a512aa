"""What two nodes that compare their tables say to one another, whole tables or what concerns both.

Source: Demers et al., "Epidemic algorithms for replicated database maintenance" (PODC 1987): anti-entropy.
Spec: docs/spec/04-gossip.md, section "Comparison".
"""

from collections.abc import Iterable

from protocol.encoding import Luck
from protocol.gossip.horizon import View
from protocol.gossip.messages import Digest, Entries, answer_messages, encode_message, entries_messages
from protocol.table import BUCKETS, PeerTable, RecordKey, bucket_of


def all_told(held: PeerTable | View, buckets: Iterable[int]) -> list[bytes]:
    """Everything that is held in some buckets."""
    return entries_messages([(bucket, held.digest([bucket])) for bucket in buckets])


def summary(held: PeerTable | View, records: int, direct_entries_max: int) -> list[bytes]:
    """What is held, by entries or by hashes, whichever is shorter; `records` is how many there are at most."""
    if records <= direct_entries_max:
        return all_told(held, range(BUCKETS))
    return [encode_message(Digest(tuple(held.bucket_hashes())))]


def differing(held: PeerTable | View, hashes: tuple[bytes, ...]) -> list[bytes]:
    """What is held in the buckets of which the other end told another hash."""
    own = held.bucket_hashes()
    return all_told(held, [bucket for bucket in range(BUCKETS) if own[bucket] != hashes[bucket]])


def newer(held: PeerTable | View, table: PeerTable, told: Entries) -> list[bytes]:
    """What is held in the told buckets and newer than told, or not told: the latter only as far as it concerns both ends."""
    theirs = dict(told.entries)
    found = {key: sequence for key, sequence in held.digest(told.buckets) if theirs.get(key, 0) < sequence}
    if held is not table:  # what has left the scope since is still held in an older form at the other end
        buckets = frozenset(told.buckets)
        for key, sequence in told.entries:
            record = table.record_of(key) if bucket_of(key) in buckets else None
            if record is not None and record.sequence > sequence:
                found[key] = record.sequence
    return answer_messages(list(found.items()))


def wanted(table: PeerTable, entries: Iterable[tuple[RecordKey, int]], luck: Luck) -> list[RecordKey]:
    """The keys of which something newer was told than is known, in random order.

    Whose card comes first is dialled first. In the order of the keys it would be the same few for every newcomer, who could have
    chosen their keys for that.
    """
    keys = [key for key, sequence in entries if table.sequence_of(key) < sequence]
    luck.shuffle(keys)
    return keys
