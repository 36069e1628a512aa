"""Whom a request is ranked over: everybody while they are few, and a part of many that no crowd can fill."""

import os
import time

import pytest
from knowing import HERE, Knowing

from protocol.identity import PeerId
from protocol.inference import Feature, InferenceRequest
from protocol.node.config import EligibleConfig

CONFIG = EligibleConfig()
MODEL = "wanted"


def ids(knowing: Knowing, now: float = 1.0, model: str = MODEL) -> list[PeerId]:
    return [facts.peer_id for facts in knowing.node.eligible.facts(model, HERE, now)]


def fill(knowing: Knowing, count: int, seconds: float = 0.2, models: tuple[str, ...] = (MODEL,)) -> list[PeerId]:
    return [knowing.card(seconds, models) for _ in range(count)]


def connect(knowing: Knowing, peer_id: PeerId) -> None:
    knowing.node.handle_connected(peer_id, 0.5)


def test_in_a_small_mesh_everybody_is_named_also_who_does_not_serve_the_model():
    knowing = Knowing()
    everybody = [*fill(knowing, 30), *fill(knowing, 30, models=("other",))]
    assert sorted(ids(knowing)) == sorted(everybody)


def test_in_a_large_one_only_those_that_serve_the_model():
    knowing = Knowing()
    fill(knowing, 400, models=("other",))
    serving = fill(knowing, 10)
    assert sorted(ids(knowing)) == sorted(serving)
    assert ids(knowing, model="nobody's") == []


@pytest.mark.parametrize("count", [70, 300, 1000])
def test_however_many_serve_it_those_that_are_ranked_stay_as_many(count):
    knowing = Knowing()
    fill(knowing, count)
    for peer_id in fill(knowing, 8):
        connect(knowing, peer_id)
    assert len(ids(knowing)) <= 8 + CONFIG.measured_max + CONFIG.near_max + CONFIG.drawn_max


def test_who_is_connected_or_was_measured_or_is_near_is_among_them():
    knowing = Knowing()
    fill(knowing, 300)
    connected, measured, near = knowing.card(0.3, [MODEL]), knowing.card(0.3, [MODEL]), fill(knowing, CONFIG.near_max, 0.001)
    connect(knowing, connected)
    knowing.measure(measured, 0.015)
    assert {connected, measured, *near} <= set(ids(knowing))


def test_a_crowd_that_says_it_is_near_keeps_out_neither_the_measured_nor_all_others():
    knowing = Knowing()
    honest = fill(knowing, 100, 0.02)
    measured = honest[0]
    knowing.measure(measured, 0.02)
    crowd = set(fill(knowing, 200, 0.00001))
    drawn: set[PeerId] = set()
    for step in range(60):
        found = ids(knowing, 1.0 + step * CONFIG.kept_s)
        assert measured in found
        drawn |= set(found) - crowd - {measured}
    assert len(drawn) > 50  # of 99, in 60 times some five


def test_they_are_chosen_anew_after_a_while_and_the_connected_looked_at_each_time():
    knowing = Knowing()
    fill(knowing, 300)
    first = ids(knowing, 1.0)
    late = knowing.card(0.0001, [MODEL])
    assert ids(knowing, 1.0 + CONFIG.kept_s / 2) == first
    assert late in ids(knowing, 1.0 + CONFIG.kept_s)
    later = knowing.card(0.0001, [MODEL])
    connect(knowing, later)
    assert later in ids(knowing, 1.1 + CONFIG.kept_s)
    assert ids(knowing, 0.2)  # a clock that goes back chooses anew


def test_who_has_connected_since_is_named_once():
    knowing = Knowing()
    fill(knowing, 300)
    peer_id = ids(knowing, 1.0)[0]
    connect(knowing, peer_id)
    assert ids(knowing, 1.1).count(peer_id) == 1


def test_the_first_that_serves_a_model_is_found_at_once():
    knowing = Knowing()
    fill(knowing, 300, models=("other",))
    assert ids(knowing, 1.0) == []
    first = knowing.card(0.1, [MODEL])
    assert ids(knowing, 1.01) == [first]


def test_names_that_are_made_up_are_not_kept_for_good():
    knowing = Knowing()
    fill(knowing, 100)
    for number in range(3 * CONFIG.models_max):
        ids(knowing, 1.0, f"model {number}")
    assert len(knowing.node.eligible._chosen) <= CONFIG.models_max
    assert ids(knowing, 1.1)


def test_to_rank_in_a_mesh_of_many_costs_little_more_than_in_one_of_few():
    """By processor time of the same machine, the least of several: a thousand cards in place of sixty, of which all serve."""

    def least_s(knowing: Knowing) -> float:
        request, taken = InferenceRequest(os.urandom(16), Feature.CHAT, MODEL, b"{}"), []
        for _ in range(15):
            began = time.thread_time()
            assert knowing.node.rank(request, 1.0).qualified
            taken.append(time.thread_time() - began)
        return min(taken)

    few, many = Knowing(), Knowing()
    fill(few, CONFIG.everybody_max - 1)
    fill(many, 1000)
    assert least_s(many) < 2.0 * least_s(few)
