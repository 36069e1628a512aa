"""What cannot be seen from outside, why, and which tests of the project hold it.

Look hard for a case before adding an entry here: most of what a node does shows somewhere.

Spec: docs/spec/README.md, section "The conformance suite".
"""

from mesh.conformance.registry import inside

_KEYS = "tests/protocol/identity/test_keys.py::"
_ADDRESS = "tests/protocol/test_multiaddr.py::"
_TRANSPORT = "tests/mesh/transport/test_transport.py::"
_ENDPOINT = "tests/protocol/quic/test_endpoint.py::"
_NEAR = "tests/protocol/quic/test_near_peers.py::"
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

_DOORSTEP = "tests/protocol/quic/test_doorstep.py::"

inside(
    "ISO-TRANSPORT-017",
    "what is kept of a client does not show, nor what a token says",
    _DOORSTEP + "test_a_retry_is_one_small_datagram_that_keeps_nothing",
    _DOORSTEP + "test_a_token_proves_nothing_in_another_hand",
    _DOORSTEP + "test_a_proven_address_is_bound_by_its_prefix",
)
inside(
    "ISO-TRANSPORT-026",
    "the account of the CPU is the node's own",
    _DOORSTEP + "test_a_peer_that_takes_too_much_of_a_core_is_banned_within_five_seconds",
)
inside(
    "ISO-TRANSPORT-027",
    "a ban takes minutes to end, and several prefixes to compare",
    _DOORSTEP + "test_a_banned_peer_is_told_so_and_never_counts_as_connected",
    _DOORSTEP + "test_first_packets_of_a_banned_prefix_leave_no_state_and_get_no_answer",
    "tests/protocol/conduct/test_conduct.py::test_every_ban_ends",
)
inside(
    "ISO-TRANSPORT-018",
    "a case would have to run on the node's machine",
    _NEAR + "test_no_large_datagram_goes_where_it_was_not_asked_for",
    _NEAR + "test_a_path_that_carries_no_large_datagram_is_found_in_the_handshake",
)
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

# Chapter 3

_RECORDS = "tests/protocol/test_records.py::"
_TABLE = "tests/protocol/test_table.py::"
_REFUSED = "tests/protocol/test_refused_records.py::"
_ANNOUNCER = "tests/protocol/test_announcer.py::"
_GOSSIP = "tests/protocol/test_gossip_machine.py::"
_CONDUCT = "tests/protocol/test_gossip_conduct.py::"
_HORIZON = "tests/protocol/test_horizon.py::"
_SUSPICION = "tests/protocol/test_suspicion.py::"
_MEMBERSHIP = "tests/protocol/test_membership.py::"
_CROWD = "tests/protocol/test_crowd.py::"

inside(
    "ISO-REC-016",
    "it takes crashes of the node, and of its disk",
    _RECORDS + "test_no_sequence_number_is_used_twice_whatever_crashes",
    "tests/mesh/test_store.py::test_killed_node_never_reuses_a_sequence",
)
inside(
    "ISO-REC-019",
    "what is remembered after a restart and by a wrong clock does not show within a run",
    _TABLE + "test_an_old_record_cannot_come_back_after_a_newer_one_expired",
    _TABLE + "test_what_expired_by_a_wrong_clock_is_let_in_again_and_nothing_older",
)
inside(
    "ISO-REC-031",
    "it takes two starts of the node",
    _REFUSED + "test_older_records_are_refused_after_a_restart_and_the_newest_is_welcome",
    _REFUSED + "test_no_record_ever_moves_backwards_also_over_restarts",
    "tests/program/test_old_records.py::test_a_killed_node_refuses_the_old_card_and_takes_the_newest",
)
inside(
    "ISO-REC-021",
    "it takes more peers than a table holds",
    _TABLE + "test_whatever_happens_bounds_hold_and_no_number_goes_back",
    _TABLE + "test_expired_peers_make_room_before_live_ones",
    _TABLE + "test_the_peer_unheard_the_longest_makes_room_and_never_this_node",
)
inside(
    "ISO-REC-022",
    "a card is renewed after an hour",
    _ANNOUNCER + "test_card_that_does_not_change_is_renewed_at_half_its_lifetime_with_the_same_content",
)
inside(
    "ISO-REC-023",
    "as ISO-REC-022",
    _ANNOUNCER + "test_place_that_wanders_is_not_told_with_a_renewal_unless_it_is_news",
)
inside(
    "ISO-REC-024",
    "a start, a sleep and a step of the clock are the node's own",
    _ANNOUNCER + "test_incarnation_grows_with_a_refutation_and_a_renewal_and_with_nothing_else",
)

# Chapter 4

inside(
    "ISO-GOS-002",
    "how much waits in a node does not show",
    "tests/mesh/nodes/test_lives.py::test_peers_that_come_and_go_leave_nothing_behind",
    "tests/mesh/nodes/test_outbox.py::test_what_waits_for_a_peer_is_bounded_and_the_oldest_goes",
)
inside("ISO-GOS-012", "it takes a thousand records that a node asks for", _GOSSIP + "test_bytes_that_were_asked_for_are_free")
inside("ISO-GOS-015", "nobody else can make a record of the node", _GOSSIP + "test_a_forgotten_own_record_is_heard")
inside(
    "ISO-GOS-037",
    "a node holds a part only of a mesh of thousands",
    _HORIZON + "test_past_the_bound_the_nearest_are_held_and_a_sample_of_the_others",
    _HORIZON + "test_whom_the_node_is_connected_to_is_held_however_far_and_however_many_claim_to_be_near",
)
inside(
    "ISO-GOS-039",
    "as ISO-GOS-037",
    _HORIZON + "test_what_is_beyond_the_scope_is_taken_when_asked_for_only",
    _HORIZON + "test_an_answer_that_comes_too_late_is_not_taken",
)

inside(
    "ISO-GOS-045",
    "which cards are held back is the node's own luck",
    _CONDUCT + "test_card_that_is_left_to_a_peer_is_pushed_to_it_when_it_does_not_come",
)

# Chapter 5

_PROBE = "tests/protocol/test_probe.py::"
_DOUBT = "tests/protocol/test_probe_doubt.py::"
_STRAIN = "tests/protocol/test_probe_strain.py::"
_LEGS = "tests/protocol/test_probe_legs.py::"

inside("ISO-PROBE-006", "what a node measures is its own", _PROBE + "test_the_kernels_time_of_arrival_counts_and_not_ours")
inside("ISO-PROBE-007", "as ISO-PROBE-006", _PROBE + "test_an_echo_at_an_impossible_moment_is_no_sample")
inside(
    "ISO-PROBE-008",
    "what a node remembers is its own",
    _PROBE + "test_outstanding_nonces_are_bounded_and_the_oldest_are_forgotten",
    _PROBE + "test_peers_are_bounded",
)
inside("ISO-PROBE-009", "it takes a node that is held up", _STRAIN + "test_a_node_that_was_held_up_blames_nobody")
inside(
    "ISO-PROBE-017",
    "a silence before a link is not told from one on it",
    _DOUBT + "test_a_peer_that_joins_the_mesh_is_not_blamed_for_its_silence_before",
)
inside(
    "ISO-PROBE-023",
    "what a node measures is its own",
    _LEGS + "test_both_ends_measure_one_exchange",
    _LEGS + "test_a_third_leg_ends_a_suspicion_and_a_probe_does_not",
    _LEGS + "test_third_legs_feed_jitter_and_loss",
)
_EDGES = "tests/protocol/test_edges.py::"
inside(
    "ISO-EDGE-001",
    "what counts shows in a node's choices alone",
    _EDGES + "test_an_edge_counts_where_both_ends_tell_it_and_is_as_long_as_the_longer",
    _EDGES + "test_nobody_shortens_an_edge",
    _EDGES + "test_edges_told_of_others_count_for_nothing",
    _EDGES + "test_two_ways_say_nothing_of_one_another",
)
inside(
    "ISO-EDGE-002",
    "as ISO-EDGE-001",
    _EDGES + "test_ends_that_disagree_are_told_of_once_and_until_they_agree",
    _EDGES + "test_what_jitter_explains_is_no_dispute_and_what_it_does_not_is",
)
inside(
    "ISO-EDGE-003",
    "what a node keeps is its own",
    _EDGES + "test_the_store_is_bounded_and_the_longest_untold_goes",
    _EDGES + "test_of_one_peers_edges_only_so_many_are_kept",
    _EDGES + "test_a_crowd_of_one_place_or_owner_keeps_only_its_share_once_others_come",
)
inside(
    "ISO-EDGE-005",
    "as ISO-EDGE-001",
    "tests/protocol/node/test_edges_of_a_mesh.py::test_edges_of_both_forms_mix",
)
inside(
    "ISO-GOS-048",
    "what a node keeps is its own",
    "tests/protocol/node/test_edges_of_a_mesh.py::test_in_a_large_mesh_a_node_holds_the_edges_of_its_nearest_and_of_a_sample",
    "tests/protocol/node/test_ring.py::test_what_is_missing_is_asked_of_a_few_near_peers_so_much_of_each",
)
inside("ISO-EDGE-004", "as ISO-EDGE-001", _EDGES + "test_edges_are_forgotten_after_their_time_and_with_their_record")
inside("ISO-REC-034", "which edges share a tag nobody can arrange", _EDGES + "test_of_edges_that_share_a_tag_none_is_told")
inside(
    "ISO-COORD-005",
    "what a node prefers shows in its choices alone",
    "tests/protocol/node/test_nearest.py::test_a_crowd_that_claims_to_be_near_displaces_nobody_who_was_measured",
    "tests/protocol/test_routing.py::test_own_measurements_win_over_what_is_advertised",
)

# Chapter 6

inside(
    "ISO-INFER-005",
    "no peer can make a node wait for an hour or count so far",
    "tests/protocol/wire/test_infer_codec.py::test_durations_and_counts_past_their_range_are_told_as_its_end",
    "tests/protocol/wire/test_infer_codec.py::test_long_error_messages_are_cut_between_characters",
)
inside(
    "ISO-INFER-019",
    "an engine that dies is the node's own",
    "tests/mesh/test_inference_streams.py::test_an_engine_that_dies_in_mid_stream_fails_the_answer",
    "tests/mesh/test_inference_streams.py::test_a_fault_of_our_own_is_told_and_raised",
    "tests/mesh/test_inference_streams.py::test_a_node_that_stops_resets_its_streams",
)

# Chapter 7

inside(
    "ISO-MEMBER-001",
    "bootstrap addresses are the node's own",
    _MEMBERSHIP + "test_bootstrap_address_is_dialled_at_once_and_again_after_the_backoff",
    _MEMBERSHIP + "test_backoff_grows_to_its_bound_and_never_past_it",
)
inside(
    "ISO-MEMBER-006",
    "as ISO-GOS-002",
    "tests/mesh/nodes/test_outbox.py::test_what_waits_for_a_peer_is_bounded_and_the_oldest_goes",
)
inside(
    "ISO-MEMBER-015",
    "it takes more peers than a node wants",
    "tests/protocol/node/test_nearest.py::test_a_crowd_that_claims_to_be_near_displaces_nobody_who_was_measured",
)
inside(
    "ISO-MEMBER-016",
    "it takes more peers than a node wants",
    "tests/protocol/test_links.py::test_young_and_silent_connections_are_not_surplus",
)
inside(
    "ISO-MEMBER-017",
    "as ISO-MEMBER-016",
    "tests/protocol/test_links.py::test_suspected_peer_cannot_call_its_connection_surplus_to_stay_alive",
)
inside(
    "ISO-MEMBER-020",
    "whether somebody counts as gone or as silent does not show",
    _MEMBERSHIP + "test_late_cards_do_not_bring_back_who_has_left",
    _MEMBERSHIP + "test_doubt_that_merely_runs_out_brings_nobody_back",
    _MEMBERSHIP + "test_peer_that_fell_silent_is_back_when_it_has_signed_something_since_and_is_dialled_at_once",
    _MEMBERSHIP + "test_what_a_peer_signs_outweighs_neither_the_doubts_of_others_nor_its_goodbye",
)
inside(
    "ISO-MEMBER-021",
    "it takes minutes, and shows in what is not told",
    "tests/protocol/node/test_node_routing.py::test_peer_that_stays_away_is_forgotten_and_dialled_no_more",
    _TABLE + "test_a_removed_peer_comes_back_by_news_only",
)
inside(
    "ISO-MEMBER-027",
    "as ISO-MEMBER-020",
    _MEMBERSHIP + "test_unconnected_peer_is_alive_by_its_card_until_others_doubt_it",
    _MEMBERSHIP + "test_unconnected_peer_that_stays_doubted_is_gone_and_then_forgotten",
)
inside(
    "ISO-MEMBER-029", "it takes minutes until somebody is forgotten", _SUSPICION + "test_forgotten_peer_that_refutes_is_acquitted"
)
inside(
    "ISO-MEMBER-030",
    "nobody else can make a record of the node's earlier life",
    _SUSPICION + "test_verdict_of_an_earlier_life_is_replaced_each_time_that_a_record_of_that_life_shows",
)
inside(
    "ISO-MEMBER-031",
    "no peer can have a machine sleep",
    "tests/mesh/test_sleep.py::test_a_sleep_is_told_and_refuted_once",
    "tests/protocol/node/test_node_membership.py::test_machine_that_slept_is_back_as_soon_as_it_wakes",
)
inside(
    "ISO-MEMBER-033",
    "it takes more peers than a node can hold",
    _CROWD + "test_full_node_refuses_whoever_comes_and_keeps_nothing_of_them",
    _CROWD + "test_more_connections_than_gossip_talks_with_cannot_be_configured",
    "tests/protocol/node/test_node_crowd.py::test_nobody_is_connected_to_a_full_core_who_hears_no_news",
)
inside(
    "ISO-MEMBER-034",
    "as ISO-MEMBER-033",
    _CROWD + "test_who_fills_a_node_drives_out_nobody_that_it_needs",
    _CROWD + "test_crowd_moves_on_for_who_comes_next_the_newest_first",
    "tests/protocol/node/test_node_crowd.py::test_visitor_whose_request_is_under_way_stays",
)
inside(
    "ISO-MEMBER-035",
    "bootstrap addresses are the node's own",
    _CROWD + "test_full_door_is_tried_again_while_few_others_are_known",
)

# Chapter 9: the suite is no member of a private network

_ADMISSION = "tests/protocol/admission/test_admission.py::"
_STATEMENTS = "tests/protocol/admission/test_statements.py::"
_ADMITTED = "tests/protocol/node/test_admitted.py::"
_GATE = "tests/mesh/admission/test_gate_nodes.py::"
_JOINING = "tests/mesh/admission/test_joining.py::"
_NO_MEMBER = "it takes a member that is put out, is federated with, or signs for the network"

inside(
    "ISO-ADM-001",
    _NO_MEMBER,
    _STATEMENTS + "test_ranges_of_a_delegation",
    _STATEMENTS + "test_one_changed_bit_is_noticed",
    _STATEMENTS + "test_more_unknown_elements_than_allowed_are_refused",
    _STATEMENTS + "test_arbitrary_bytes_raise_one_kind_of_error",
)
inside(
    "ISO-ADM-002",
    _NO_MEMBER,
    _GATE + "test_who_is_no_member_is_refused_by_an_alert_and_leaves_nothing",
    _GATE + "test_a_member_lets_no_stranger_answer_its_dial",
)
inside("ISO-ADM-003", _NO_MEMBER, _ADMISSION + "test_others_are_refused_each_with_its_code")
inside("ISO-ADM-004", _NO_MEMBER, _ENDPOINT + "test_why_a_peer_is_not_admitted_is_told_by_an_alert")
inside(
    "ISO-ADM-005",
    _NO_MEMBER,
    _GATE + "test_who_is_revoked_while_connected_is_put_out_by_all",
    _GATE + "test_a_certificate_that_ends_while_connected_ends_the_connection",
)
inside(
    "ISO-ADM-006",
    _NO_MEMBER,
    _ADMITTED + "test_other_cards_are_refused_and_change_nothing",
    _ADMITTED + "test_other_kinds_are_taken_once_the_author_has_shown_its_proof",
)
inside("ISO-ADM-007", "it takes an invitation of the node's", _JOINING + "test_a_guest_may_join_and_nothing_else")
inside(
    "ISO-ADM-009",
    "it takes an invitation of the node's",
    _JOINING + "test_no_certificate_leaves_before_its_use_is_on_the_disk",
    _JOINING + "test_a_use_is_counted_once_for_each_key_and_kept_over_a_restart",
)
inside(
    "ISO-ADM-008",
    "it takes an invitation of the node's",
    _ADMISSION + "test_other_guests_are_refused",
    _ADMISSION + "test_an_invitation_from_before_a_revocation_serves_the_revoked_no_more",
    "tests/protocol/admission/test_invites.py::test_a_use_is_bound_to_its_peer",
)
inside(
    "ISO-ADM-010",
    _NO_MEMBER,
    _ADMISSION + "test_notices_only_ever_go_forward",
    _ADMISSION + "test_notices_of_no_concern_are_refused",
    _ADMISSION + "test_a_notice_needs_the_right_delegation",
    _ADMISSION + "test_a_revoked_issuer_signs_no_more_notices",
)
inside("ISO-ADM-011", _NO_MEMBER, _GATE + "test_who_is_revoked_while_connected_is_put_out_by_all")
inside(
    "ISO-ADM-012",
    _NO_MEMBER,
    _ADMISSION + "test_notices_stand_after_a_restart_though_a_delegation_has_ended",
    _GATE + "test_a_revocation_stands_after_a_restart_and_an_older_list_changes_nothing",
)
inside("ISO-ADM-013", _NO_MEMBER, _ADMITTED + "test_records_of_a_federated_network_are_taken_under_its_own_id")
inside("ISO-ADM-014", _NO_MEMBER, _ADMISSION + "test_members_of_a_federated_network_are_let_in_up_to_its_quota")

# Chapter 10

_SEALING = "tests/protocol/sealing/test_sealing.py::"
_RECEIPTS = "tests/mesh/nodes/test_receipts_of_answers.py::"
_THROUGH = "tests/mesh/nodes/test_asking_through_a_relay.py::"
_BETWEEN = "it takes a relay and an executor that both know the suite"

inside(
    "ISO-SEAL-001",
    "it takes two starts of the node",
    _THROUGH + "test_each_start_has_a_sealing_key_of_its_own",
)
inside(
    "ISO-SEAL-007",
    _BETWEEN,
    _THROUGH + "test_a_second_candidate_answers_where_a_relay_spoils_the_first",
    _THROUGH + "test_a_request_sealed_to_an_older_key_is_sealed_again_to_the_newer",
    "tests/protocol/node/test_relays.py::test_only_the_executors_own_newer_card_is_taken_with_a_refusal",
)
inside("ISO-SEAL-008", _BETWEEN, _THROUGH + "test_a_request_goes_to_nobody_else_and_comes_from_nobody_else")
inside("ISO-SEAL-010", _BETWEEN, _THROUGH + "test_a_relay_passes_on_what_it_may_and_nothing_else")
inside(
    "ISO-SEAL-011",
    _BETWEEN,
    _THROUGH + "test_a_relay_holds_no_more_circuits_than_it_may",
    "tests/protocol/test_circuits.py::test_a_requester_has_its_share_and_others_have_theirs",
    "tests/protocol/test_circuits.py::test_so_has_an_executor",
    "tests/protocol/test_circuits.py::test_beginning_is_paid_for_also_where_it_is_refused",
)
inside("ISO-SEAL-012", _BETWEEN, _THROUGH + "test_a_reader_that_takes_nothing_holds_the_executor_back")
inside(
    "ISO-SEAL-013",
    _BETWEEN,
    _THROUGH + "test_streaming_and_cancelling_reach_the_executor",
    _THROUGH + "test_a_circuit_ends_with_its_deadline",
)
inside(
    "ISO-SEAL-015",
    "whom a requester asks is its own choice",
    "tests/protocol/node/test_relays.py::test_a_request_that_came_from_a_peer_passes_no_other",
)

inside(
    "ISO-SEAL-002",
    "what is sealed travels through a relay",
    _SEALING + "test_a_request_opens_for_its_route_alone",
    _SEALING + "test_a_request_opens_with_its_key_alone",
    _SEALING + "test_nobody_seals_in_the_name_of_another",
)
inside("ISO-SEAL-003", "as ISO-SEAL-002", _SEALING + "test_wrong_padding_is_refused")
inside("ISO-SEAL-004", "as ISO-SEAL-002", _SEALING + "test_only_the_answer_itself_opens_as_an_answer")
inside("ISO-SEAL-005", "as ISO-SEAL-002", _SEALING + "test_the_same_request_answered_twice_is_answered_under_two_keys")
inside("ISO-SEAL-006", "as ISO-SEAL-002", _SEALING + "test_what_is_done_to_an_answer_is_seen_and_named")
inside("ISO-SEAL-021", "it takes two nodes", _RECEIPTS + "test_a_receipt_is_passed_on_as_it_is")
inside(
    "ISO-SEAL-022",
    "what a requester makes of a receipt is its own",
    _RECEIPTS + "test_a_wrong_receipt_is_the_peers_fault_and_is_told",
    "tests/protocol/test_receipts.py::test_what_differs_is_named",
)
inside("ISO-ADM-015", _NO_MEMBER, _GATE + "test_federated_members_meet_within_their_quota_of_requests")
