"""The codecs, each with its bounds; the only importers of msgpack and flatbuffers.

msgpack carries records and gossip (`packing`), FlatBuffers carry inference (`inference`, checked by `verifier` before any field
is read).

Spec: docs/spec/00-conventions.md, section "Packing", and docs/spec/06-inference.md.
"""

from protocol.wire.packing import PackingLimits, Plain, pack, unpack

__all__ = ["PackingLimits", "Plain", "pack", "unpack"]
