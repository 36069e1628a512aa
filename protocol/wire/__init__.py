"""The two codecs: msgpack for records and gossip, FlatBuffers for inference. Nothing else imports either library."""

from protocol.wire.packing import PackingLimits, Plain, pack, unpack

__all__ = ["PackingLimits", "Plain", "pack", "unpack"]
