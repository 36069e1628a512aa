"""The codecs: msgpack for records and gossip, FlatBuffers for inference, both bounded; nothing else imports either library."""
