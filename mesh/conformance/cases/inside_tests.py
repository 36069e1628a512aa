"""What cannot be seen from outside, why, and which tests of the project hold it.

Look hard for a case before adding an entry here: most of what a node does shows somewhere.

Spec: docs/spec/README.md, section "The conformance suite".
"""

from mesh.conformance.registry import inside

_KEYS = "tests/protocol/identity/test_keys.py::"
_ADDRESS = "tests/protocol/test_multiaddr.py::"
_TRANSPORT = "tests/mesh/transport/test_transport.py::"
_ENDPOINT = "tests/protocol/quic/test_endpoint.py::"
_HOSTILE = "tests/protocol/quic/test_hostile.py::"

# Chapter 1

inside("ISO-ID-005", "the text form is not on the wire", _KEYS + "test_peer_ids_of_every_key_type_are_read_and_written")
inside("ISO-ID-006", "the text form is not on the wire", _KEYS + "test_both_text_forms_of_a_peer_id_are_read")
inside(
    "ISO-ID-009",
    "the text form is not on the wire",
    _ADDRESS + "test_equal_addresses_are_equal_values",
    _ADDRESS + "test_text_and_bytes_round_trip",
)
inside(
    "ISO-ID-010",
    "a name that breaks it is left out of a card like any address that is not understood",
    _ADDRESS + "test_text_that_is_no_address_is_refused_with_a_hint",
    _ADDRESS + "test_bytes_that_are_no_address_are_refused",
)
inside(
    "ISO-ID-014",
    "it takes two starts of the node",
    _TRANSPORT + "test_a_peer_that_was_started_again_replaces_its_dead_self_at_once",
    "tests/protocol/identity/test_certificate.py::test_other_entropy_gives_another_key_and_serial",
)

inside(
    "ISO-ID-031",
    "what a reader keeps of a peer is its own",
    "tests/spec/test_identity_vectors.py::test_identify_push",
)

# Chapter 2

inside("ISO-TRANSPORT-014", "how much is kept does not show", _HOSTILE + "test_gaps_in_the_handshake_are_bounded")
inside(
    "ISO-TRANSPORT-044",
    "no peer can make a handler crash that has no fault",
    _TRANSPORT + "test_a_crashing_handler_ends_its_stream_alone",
)
inside(
    "ISO-TRANSPORT-070",
    "a queue of the sender is never full for a peer to see",
    _ENDPOINT + "test_too_many_datagram_frames_at_once_are_dropped",
)
