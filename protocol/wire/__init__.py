"""The encodings that meet foreign bytes: FlatBuffers for inference, msgpack for records; import the submodules directly."""
