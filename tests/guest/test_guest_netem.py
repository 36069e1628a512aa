"""Links that the kernel shapes: real nodes at both ends find each other, measure the distance and answer."""

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

DELAY_MS = 150
"""One way; twice this is an order of magnitude more than what an emulated processor adds."""


def test_nodes_over_a_slow_and_lossy_link_answer_and_know_how_far_they_are(guest):
    told = guest.python("tests/guest/inside_netem.py", str(DELAY_MS), "5", time_s_max=1000).told
    assert told["is_answered_by_far"]
    assert told["answer"]
    assert told["tokens"] > 0
    assert told["dropped"] > 0
    distance = told["distance"]
    assert distance["source"] == "measured"
    assert 2 * DELAY_MS / 1000 <= distance["rtt_s"] < 4 * DELAY_MS / 1000
