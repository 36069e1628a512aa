"""What cannot be seen of fabrics from outside, and which tests hold it: one is open only to who shares memory with the node.

Spec: docs/spec/README.md, section "The conformance suite".
"""

from mesh.conformance.registry import inside

_LEASES = "tests/protocol/fabric/test_leases.py::"
_TRANSFER = "tests/protocol/fabric/test_transfer.py::"
_ADVERTS = "tests/protocol/fabric/test_adverts.py::"
_FABRIC_MESSAGES = "tests/protocol/fabric/test_fabric_messages.py::"
_FABRIC_PEERS = "tests/protocol/fabric/test_fabric_peers.py::"
_FABRIC_SIM = "tests/sim/test_fabric.py::"
_HARDWARE = "a fabric is open only to who shares memory or a network with the node"

inside(
    "ISO-FAB-001",
    "what a machine is called is not known outside",
    _ADVERTS + "test_a_host_has_another_tag_in_every_network_and_after_every_boot",
    _ADVERTS + "test_the_id_of_a_gpu_is_not_told",
)
inside(
    "ISO-FAB-002",
    "what a node makes of an advert is its own",
    _ADVERTS + "test_what_a_later_version_says_is_passed_over",
    _ADVERTS + "test_a_card_carries_an_advert_and_does_without",
)
inside(
    "ISO-FAB-007",
    _HARDWARE,
    _LEASES + "test_a_region_has_one_lease_at_a_time_and_each_in_a_greater_epoch",
    _LEASES + "test_an_owner_leases_nothing_outside_a_region",
    _FABRIC_SIM + "test_every_request_is_answered_whatever_the_fabric_does",
)
inside(
    "ISO-FAB-032",
    _HARDWARE,
    _LEASES + "test_books_that_follow_one_another_number_their_regions_on",
    "tests/mesh/test_shm.py::test_an_offer_of_an_earlier_fabric_with_a_peer_is_none_of_the_next",
)
inside(
    "ISO-FAB-009",
    _HARDWARE,
    _LEASES + "test_a_lease_that_nobody_gives_back_runs_out_and_its_region_is_retired",
    _TRANSFER + "test_a_region_whose_receiver_says_nothing_is_retired",
    _FABRIC_SIM + "test_the_checks_catch_a_planted_bug",
)
inside(
    "ISO-FAB-010",
    _HARDWARE,
    _LEASES + "test_an_epoch_is_taken_once",
    _LEASES + "test_a_lease_of_a_region_that_was_not_shown_is_stale",
    _LEASES + "test_a_lease_past_its_region_or_for_something_else_is_out_of_bounds",
    _FABRIC_SIM + "test_the_checks_catch_a_table_of_regions_without_epochs",
)
inside("ISO-FAB-011", _HARDWARE, _FABRIC_SIM + "test_the_checks_catch_a_planted_bug")
inside(
    "ISO-FAB-014",
    _HARDWARE,
    _FABRIC_MESSAGES + "test_what_is_no_message_is_refused",
    _FABRIC_MESSAGES + "test_what_a_later_version_says_is_passed_over",
    "tests/spec/test_fabric_vectors.py::test_what_is_refused",
)
inside(
    "ISO-FAB-015",
    _HARDWARE,
    _TRANSFER + "test_a_giver_does_what_the_table_says_and_blames_who_is_to_blame",
    _TRANSFER + "test_a_receiver_does_what_the_table_says_and_blames_who_is_to_blame",
)
inside(
    "ISO-FAB-016",
    _HARDWARE,
    _FABRIC_SIM + "test_every_request_is_answered_whatever_the_fabric_does",
    "tests/guest/test_guest_rdma.py::test_other_bytes_than_the_tag_says_do_not_count",
)
inside(
    "ISO-FAB-018",
    _HARDWARE,
    _FABRIC_SIM + "test_every_request_is_answered_whatever_the_fabric_does",
    "tests/shell/test_fallback.py::test_tensors_take_the_stream_within_200_ms_of_the_first_error",
)
inside(
    "ISO-FAB-021",
    _HARDWARE,
    _FABRIC_PEERS + "test_offers_are_charged_before_anything_is_done_for_them",
    _LEASES + "test_a_user_maps_so_much_of_a_peer_and_no_more",
)
inside(
    "ISO-FAB-022",
    _HARDWARE,
    _FABRIC_PEERS + "test_the_first_error_closes_a_fabric_for_a_while_and_each_further_one_for_longer",
)

_POOL = "tests/mesh/test_pool.py::"
_POOLS = "tests/protocol/fabric/test_pools.py::"
_POOL_NODES = "tests/mesh/nodes/test_pool_of_nodes.py::"

inside(
    "ISO-FAB-024",
    _HARDWARE,
    _POOLS + "test_a_line_with_one_byte_changed_is_none",
    _POOLS + "test_a_superblock_is_believed_no_further_than_the_file_goes",
    _POOL + "test_an_owner_lives_with_whatever_others_write_into_slots",
    _POOL_NODES + "test_a_process_that_writes_where_it_only_reads_dies",
)
inside(
    "ISO-FAB-025",
    _HARDWARE,
    _POOL_NODES + "test_a_copy_of_the_pool_is_another_pool",
    _POOL_NODES + "test_an_old_lease_and_one_of_another_owner_or_epoch_are_refused",
)
inside(
    "ISO-FAB-026",
    _HARDWARE,
    _POOL + "test_processes_that_claim_at_once_never_have_one_slab_or_slot_together",
    _POOL + "test_a_slab_has_one_owner_at_a_time",
)
inside(
    "ISO-FAB-027",
    _HARDWARE,
    _POOL + "test_two_who_write_at_once_do_not_both_believe_it",
    _POOL + "test_who_writes_a_little_later_than_another_is_waited_for",
    _POOL + "test_who_takes_too_long_to_write_gives_the_slot_up",
)
inside(
    "ISO-FAB-028",
    _HARDWARE,
    _POOL + "test_an_owner_without_a_beat_is_found_dead_and_its_slabs_are_free_again",
    _POOL_NODES + "test_a_killed_owner_is_found_dead_and_its_slot_has_a_new_epoch",
)
inside(
    "ISO-FAB-029",
    _HARDWARE,
    _POOL + "test_what_is_held_is_not_used_again_by_anybody_until_it_is_let_go",
    _POOL_NODES + "test_tensors_that_are_kept_stay_as_they_are_when_their_giver_is_gone",
)
inside("ISO-FAB-030", _HARDWARE, _POOL_NODES + "test_a_pool_that_needs_flushes_carries_tensors_too")
inside("ISO-FAB-031", _HARDWARE, _POOL_NODES + "test_a_tagged_pool_is_copied_from_and_checked")

_GPU = "tests/mesh/gpu/test_gpu_session.py::"
_GPU_NODES = "tests/mesh/nodes/test_gpu_memory_of_nodes.py::"

inside("ISO-FAB-060", _HARDWARE, _GPU_NODES + "test_who_cannot_show_the_secret_at_the_local_socket_has_nothing_opened")
inside("ISO-FAB-061", _HARDWARE, "tests/mesh/gpu/test_device_arrays.py::test_blocks_are_whole_pages_and_little_is_wasted")
inside(
    "ISO-FAB-062",
    _HARDWARE,
    _GPU + "test_the_size_of_a_region_is_what_the_driver_says",
    _GPU + "test_a_region_has_one_token",
)
inside("ISO-FAB-066", _HARDWARE, _GPU + "test_tensors_stay_on_the_gpu_that_the_key_names")
inside("ISO-FAB-063", _HARDWARE, _GPU + "test_what_was_taken_stays_as_it_was_whatever_its_giver_does")
inside("ISO-FAB-064", _HARDWARE, _GPU + "test_bytes_for_the_stream_come_from_where_the_tensors_lay")
inside(
    "ISO-FAB-065",
    _HARDWARE,
    _GPU + "test_memory_is_given_back_when_the_peer_has_closed_it",
    _GPU + "test_a_peer_that_closes_nothing_is_given_no_more",
)

_SHM = "tests/mesh/test_shm.py::"
_NODES = "tests/mesh/nodes/test_fabric_of_nodes.py::"

inside("ISO-FAB-003", _HARDWARE, _NODES + "test_a_peer_that_claims_our_host_gains_nothing")
inside(
    "ISO-FAB-004",
    _HARDWARE,
    _SHM + "test_whoever_does_not_know_the_secret_is_turned_away_and_the_peer_is_let_in_after_it",
    _SHM + "test_a_door_is_open_for_so_long_and_for_so_many",
    _SHM + "test_a_proof_is_good_for_its_role_alone",
)
inside("ISO-FAB-005", _HARDWARE, _SHM + "test_a_process_of_another_user_is_turned_away")
inside("ISO-FAB-006", _HARDWARE, _NODES + "test_a_peer_that_claims_our_host_gains_nothing")
inside("ISO-FAB-008", _HARDWARE, _NODES + "test_a_region_that_one_peer_was_shown_is_shown_to_nobody_else")
inside(
    "ISO-FAB-012",
    _HARDWARE,
    _SHM + "test_a_region_can_neither_be_resized_nor_written_nor_unsealed_by_whoever_is_passed_it",
    _SHM + "test_memory_that_lacks_a_seal_is_not_mapped",
    _SHM + "test_what_is_no_memory_is_not_mapped",
)
inside("ISO-FAB-013", _HARDWARE, _SHM + "test_whole_numbers_are_private_to_whoever_checks_them")
inside("ISO-FAB-017", _HARDWARE, _NODES + "test_what_the_stream_brings_past_its_offer_ends_the_request_and_the_fabric")
inside("ISO-FAB-019", _HARDWARE, _NODES + "test_a_lease_that_is_taken_back_in_use_does_not_count")
inside("ISO-FAB-020", _HARDWARE, _NODES + "test_a_sealed_request_takes_no_fabric")
inside(
    "ISO-FAB-023",
    _HARDWARE,
    _SHM + "test_a_ring_with_counters_that_cannot_be_ends_the_session",
    _SHM + "test_a_packet_that_no_peer_sends_ends_the_session",
)
