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

_GUEST_GPUS = "tests/guest/test_guest_gpus.py::"
_DIRECT = "tests/mesh/rdma/test_rdma_direct.py::"

inside(
    "ISO-FAB-045",
    _HARDWARE,
    _WORDS + "test_a_lease_of_memory_of_a_device_is_one_for_an_offer_of_tensors_there_alone",
    _GUEST_GPUS + "test_no_tag_is_left_out_that_the_offer_has_not_left_out",
)
inside(
    "ISO-FAB-046",
    _HARDWARE,
    _DIRECT + "test_memory_that_a_peer_is_to_write_to_holds_zeros",
    _GUEST_GPUS + "test_what_a_peer_has_not_written_shows_nothing_of_anybody",
    _GUEST_GPUS + "test_a_key_to_memory_of_a_gpu_is_worth_nothing_afterwards",
)
inside(
    "ISO-FAB-047",
    _HARDWARE,
    _DIRECT + "test_memory_is_freed_when_nobody_has_it_and_not_before",
    _GUEST_GPUS + "test_memory_of_a_gpu_is_given_back_when_nobody_looks_at_it_any_more",
)
inside(
    "ISO-FAB-048",
    _HARDWARE,
    _GUEST_GPUS + "test_where_the_card_takes_no_dma_buf_tensors_go_by_the_host_with_one_copy",
    _GUEST_GPUS + "test_where_one_side_cannot_there_is_one_copy",
)
inside(
    "ISO-FAB-049",
    _HARDWARE,
    "tests/mesh/nodes/test_fabric_kinds.py::test_where_one_pair_of_ports_does_not_come_up_the_next_is_tried_within_the_request",
    "tests/shell/test_fallback.py::test_a_pair_over_which_nothing_comes_back_does_not_come_up",
)
