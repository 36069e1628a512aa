"""The functions that `fuzz_scan` finds and that need no harness, with the reason."""

_OWN = "reads what this process, this machine's owner or its files say"
_MADE = "makes bytes, and reads none"
_CALLER = "hands bytes on to a decoder that has a harness"
_QUIC = "reached inside a TLS handshake, which the doors harness of its engine makes"

APART: dict[str, str] = {
    "mesh.admission.asking:one_frame": _CALLER,
    "mesh.admission.commands:_accept": _CALLER,
    "mesh.admission.entering:serial_of": _MADE,
    "mesh.admission.files:_bytes": _OWN,
    "mesh.admission.files:_read": _OWN,  # 4 MiB at most, with a checksum
    "mesh.admission.files:_used": _OWN,
    "mesh.admission.gate:Gate._grant": _CALLER,
    "mesh.admission.gate:Gate._renew": _MADE,
    "mesh.admission.gate:Gate._take_notice": _CALLER,
    "mesh.admission.gate:Gate._take_shown": _CALLER,
    "mesh.askcommands:embed": _OWN,  # the answer of the owner's own node
    "mesh.fabric.control:Control.__init__": _CALLER,
    "mesh.fabric.control:Control.receive": _CALLER,
    "mesh.fabric.gpu.driver:Device.open": _CALLER,  # hands a token to the driver, which knows its own
    "mesh.fabric.gpu.driver:Device.read": _MADE,
    "mesh.fabric.gpu.session:GpuSession.take": _CALLER,  # copies where the core's table of regions has checked that it lies
    "mesh.fabric.cxl:CxlSession._take_word": _CALLER,
    "mesh.fabric.cxl:CxlSession.take": _CALLER,
    "mesh.fabric.lane:Lane.__init__": _CALLER,
    "mesh.fabric.lane:Lane._feed": _CALLER,
    "mesh.fabric.memory:address_of": _OWN,
    "mesh.fabric.rdma.memory:Registered.array": _OWN,
    "mesh.fabric.rdma.opener:RdmaOpener._make": _OWN,
    "mesh.fabric.rdma.ports:_gid": _OWN,  # what the kernel says of its devices
    "mesh.fabric.rdma.ports:told": _OWN,
    "mesh.fabric.rdma.session:RdmaSession._copied": _OWN,
    "mesh.fabric.session:ShmSession._take_packet": _CALLER,
    "mesh.fabric.session:ShmSession.take": _CALLER,  # views memory where the core's table of regions has checked that it lies
    "protocol.fabric.owners:Owner.claims_all": _CALLER,  # bits, of which each is a value
    "mesh.fabric.pool:Pool.array": _CALLER,  # views memory where the layout of a pool has checked that it lies
    "protocol.fabric.owners:union_of": _CALLER,  # bits as well
    "mesh.fabric.shelf:Shelf.allocate": _OWN,
    "mesh.fabric.nixl:NixlAgent.read": _MADE,
    "mesh.gatewayclient:_failure": _OWN,
    "mesh.gatewayclient:_json": _OWN,
    "mesh.engines.search:_is_engine": _OWN,  # a server on this machine, at most 64 KiB of it
    "mesh.engines.onnx.minilm_graph:build_minilm": _OWN,
    "mesh.engines.onnx.engine:OnnxEngine.offers": _OWN,
    "mesh.engines.openai:OpenAIEngine._open": _OWN,
    "mesh.engines.openai_chunks:_message_of": _OWN,  # an engine's error, 64 KiB at most; a wrong one is an empty text
    "mesh.engines.openai_chunks:_vector": _OWN,  # an engine's embedding, whose length is known
    "mesh.gateway.answers:render_embeddings": _CALLER,
    "mesh.inference.client:Answer.__init__": _CALLER,
    "mesh.inference.client:Answer._receive_at_hand": _CALLER,
    "mesh.inference.client:Answer._take": _CALLER,
    "mesh.inference.client:Answer.ask": _MADE,
    "mesh.inference.client:Answer.at_hand": _CALLER,
    "mesh.inference.server:_Serving.__init__": _CALLER,
    "mesh.inference.server:_Serving._has_request": _CALLER,
    "mesh.inference.server:_Serving._rest_of_request": _CALLER,
    "mesh.inference.server:_Serving._tell_sent": _MADE,
    "protocol.wire.template:Writer._note": _MADE,
    "mesh.links:_attributes": _OWN,  # what the kernel says of its interfaces
    "mesh.links:_link": _OWN,
    "mesh.links:_messages": _OWN,
    "mesh.links:parse": _OWN,
    "mesh.local.door:LocalDoor._take": _CALLER,
    "mesh.local.place:peer_uid": _OWN,  # what the kernel says
    "mesh.native.answers:text_of": _OWN,  # what the owner's own node sends
    "mesh.native.faces:_route_question": _OWN,
    "mesh.native.inbox:Inbox.__init__": _CALLER,
    "mesh.native.inbox:Inbox.next_message": _CALLER,
    "mesh.native.inbox:value_of": _OWN,
    "mesh.native.tensors:to_array": _CALLER,  # a tensor whose size was checked with its message
    "mesh.nodefile:find_node": _OWN,
    "mesh.outbox:read_frames": _CALLER,
    "mesh.receiptcommands:_bytes64": _OWN,  # a file of the person who types the command, a bounded one
    "mesh.receiptcommands:read_file": _OWN,  # the same
    "mesh.relay:Sealing._open": _CALLER,
    "mesh.relay:Sealing.relay": _CALLER,
    "mesh.relay:_read_header": _CALLER,
    "mesh.relay:_read_sealed": _CALLER,
    "mesh.sealed:AskingStream.__init__": _CALLER,
    "mesh.sealed:AskingStream.receive_some": _CALLER,
    "mesh.sealed:AskingStream.send_all": _MADE,
    "mesh.store:_peer_from_line": _OWN,
    "mesh.store:floors_from_text": _OWN,  # the node's own file, which carries a checksum
    "mesh.store:read_key": _OWN,
    "mesh.transport.door:Entrance.verify": _CALLER,
    "mesh.transport.holds:Holds.take": _CALLER,
    "mesh.transport.udp:UdpSocket.receive_batch": _CALLER,  # the kernel's own control messages
    "protocol.admission.machine:Admission._verify": _CALLER,
    "protocol.admission.machine:Admission.take": _CALLER,
    "protocol.distances.draws:SeededDraws.__init__": _OWN,  # a signature that the node has made for itself
    "protocol.encoding:encode_base58btc": _MADE,
    "protocol.gossip.machine:Gossip._verify": _CALLER,
    "protocol.identity.certificate:_scalar": _MADE,
    "protocol.identity.hpke:AeadKey.__init__": _MADE,
    "protocol.identity.hpke:AeadKey.open": _CALLER,  # the library's AEAD, which reads nothing but its tag
    "protocol.identity.certificate:make_certificate": _MADE,
    "protocol.membership.roster:_unpacked": _OWN,
    "protocol.node.admitted:AdmittedReader.open": _CALLER,
    "protocol.node.admitted:AdmittedReader.peek": _CALLER,
    "protocol.quic.meter:Meter.receive": _CALLER,
    "protocol.quic.qh3_engine:GuardedConnection.receive": _CALLER,
    "protocol.quic.qh3_tls:MutualBridge.parse_transport_parameters": _QUIC,
    "protocol.quic.qh3_tls:MutualContext._take": _QUIC,
    "protocol.quic.qh3_tls:MutualContext.handle_message": _QUIC,
    "protocol.records.envelope:RecordReader.open": _CALLER,
    "protocol.records.envelope:RecordReader.peek": _CALLER,
    "protocol.records.packing:RecordPacker.unpack": _OWN,
    "protocol.rows:Rows.find": _OWN,
    "protocol.rows:Rows.insert": _OWN,
    "protocol.rows:Rows.place": _OWN,
    "protocol.rows:Rows.places": _OWN,
    "protocol.scope:place_of": _MADE,
    "protocol.table:PeerTable._record": _OWN,
}
"""Functions that `fuzz_scan` finds and that need no harness, with the reason."""
