"""What of RDMA cannot be seen from outside, why, and which tests of the project hold it.

Spec: docs/spec/11-fabric.md, section "RDMA".
"""

from mesh.conformance.registry import inside

_WORDS = "tests/protocol/fabric/test_rdma_words.py::"
_GUEST = "tests/guest/test_guest_rdma.py::"
_HARDWARE = "a fabric is open only to who shares memory or a network with the node"

inside(
    "ISO-FAB-040",
    _HARDWARE,
    "tests/mesh/rdma/test_rdma_ports.py::test_rdma_is_used_where_it_was_named",
    "tests/mesh/nodes/test_fabric_kinds.py::test_a_peer_of_another_owner_gets_no_rdma_and_is_answered_by_the_stream",
    _GUEST + "test_a_key_that_is_not_good_is_refused_by_the_device_and_nothing_changes",
    _GUEST + "test_others_go_on_while_one_attacks",
)
inside(
    "ISO-FAB-041",
    _HARDWARE,
    _GUEST + "test_a_key_that_is_not_good_is_refused_by_the_device_and_nothing_changes",
    _GUEST + "test_nothing_can_be_read_by_a_key_to_write",
    _GUEST + "test_past_the_window_there_is_nothing_of_anybody_else",
    _GUEST + "test_a_device_without_windows_does_as_well",
)
inside(
    "ISO-FAB-042",
    _HARDWARE,
    _WORDS + "test_each_field_of_an_end_has_its_range",
    _WORDS + "test_a_subnet_is_shared_by_its_leading_bits_and_never_with_oneself",
    _WORDS + "test_a_lease_that_is_none_for_the_tensors_is_refused",
)
inside("ISO-FAB-043", _HARDWARE, _GUEST + "test_other_bytes_than_the_tag_says_do_not_count")
inside(
    "ISO-FAB-044",
    _HARDWARE,
    _GUEST + "test_the_first_attack_closes_the_attackers_fabric",
    _GUEST + "test_a_cable_that_is_pulled_closes_the_fabric_at_both_ends",
    _GUEST + "test_tensors_of_two_nodes_go_by_rdma_until_the_cable_is_pulled",
)
