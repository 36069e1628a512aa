"""When a fabric is quicker than the stream, and what that does to who is asked."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.fabric.cost import CXL, GPU, SHM, STREAM, Link, Way, crossover_bytes
from protocol.identity import PeerId
from protocol.inference import Feature
from protocol.records import ModelOffer
from protocol.routing import CandidateInput, Path, Requirement, RoutingConfig, RttSource, ServiceEstimates, rank, transfer_time

links = st.builds(Link, st.floats(0.0, 0.1), st.floats(1e6, 1e11))
ways = st.builds(
    Way, st.lists(links, min_size=1, max_size=4).map(tuple), st.floats(0.0, 0.01), st.floats(0.0, 0.01), st.floats(0.0, 1e-6)
)


def test_a_way_is_as_narrow_as_its_narrowest_link():
    way = Way((Link(0.001, 100.0), Link(0.002, 50.0), Link(0.003, 200.0)), setup_s=0.1, registration_s=0.2, per_byte_s=0.5)
    assert way.transfer_s(0) == pytest.approx(0.306)
    assert way.transfer_s(100) == pytest.approx(0.306 + 2.0 + 50.0)


@given(ways, ways, st.integers(0, 10**10))
def test_from_the_crossover_on_the_fabric_is_quicker_and_below_it_the_stream(fabric, stream, size):
    threshold = crossover_bytes(fabric, stream)
    by_fabric, by_stream = fabric.transfer_s(size), stream.transfer_s(size)
    slack = 1e-6 * (by_fabric + by_stream)  # both were added up in floats
    if size >= threshold * (1 + 1e-6) + 1:
        assert by_fabric <= by_stream + slack
    elif math.isfinite(threshold) and size < threshold * (1 - 1e-6) - 1:
        assert by_fabric >= by_stream - slack


def test_a_fabric_that_is_worse_in_both_is_never_chosen():
    assert crossover_bytes(Way((Link(0.1, 10.0),)), Way((Link(0.0, 100.0),))) == math.inf
    assert crossover_bytes(Way((Link(0.0, 100.0),)), Way((Link(0.1, 10.0),))) == 0.0


def test_memory_of_one_host_is_worth_its_setup_before_a_mebibyte_and_not_where_the_stream_was_as_quick():
    assert 300 * 1024 < crossover_bytes(SHM, STREAM) < 512 * 1024


def test_what_was_not_measured_beside_a_stream_is_for_tensors_of_a_mebibyte_and_more():
    assert all(900 * 1024 < crossover_bytes(way, STREAM) < 1024 * 1024 + 1024 for way in (CXL, GPU))


def candidate(name: bytes, rtt_s: float, way: Way | None = None) -> CandidateInput:
    offer = ModelOffer("m", frozenset({Feature.TENSORS}))
    return CandidateInput(PeerId(name), Path(RttSource.MEASURED, rtt_s), (offer,), way=way)


def best(payload_bytes: int) -> bytes:
    near, beside = candidate(b"near", 0.001), candidate(b"beside", 0.3, SHM)
    requirement = Requirement("m", Feature.TENSORS, payload_bytes=payload_bytes)
    services = ServiceEstimates(RoutingConfig().service)
    report = rank(bytes(16), requirement, [near, beside], services, RoutingConfig(), random.Random(1), 0.0)
    return report.qualified[0]


def test_large_tensors_go_to_the_peer_with_a_fabric_and_small_ones_to_the_nearest():
    assert best(0) == b"near"
    assert best(1024) == b"near"
    assert best(64 * 2**20) == b"beside"


def on(engine: str, name: bytes, rtt_s: float, bus: Link | None) -> CandidateInput:
    offer = ModelOffer("m", frozenset({Feature.TENSORS}), engine=engine)
    return CandidateInput(PeerId(name), Path(RttSource.MEASURED, rtt_s), (offer,), bus=bus)


def first_of(payload_bytes: int, *candidates: CandidateInput) -> bytes:
    services, config = ServiceEstimates(RoutingConfig().service), RoutingConfig()
    requirement = Requirement("m", Feature.TENSORS, payload_bytes=payload_bytes)
    return rank(bytes(16), requirement, candidates, services, config, random.Random(1), 0.0).qualified[0]


def test_large_tensors_pass_over_a_gpu_behind_a_narrow_link_and_small_ones_do_not():
    narrow, wide = on("openai", b"narrow", 0.001, Link(0.0, 0.25e9)), on("openai", b"wide", 0.05, Link(0.0, 63e9))
    assert first_of(1024, narrow, wide) == b"narrow"
    assert first_of(64 * 2**20, narrow, wide) == b"wide"


def test_engine_on_the_processor_does_not_wait_for_a_bus_and_an_unknown_bus_is_not_guessed():
    narrow = Link(0.0, 0.25e9)
    for near in (on("onnx", b"near", 0.001, narrow), on("echo", b"near", 0.001, narrow), on("openai", b"near", 0.001, None)):
        assert first_of(64 * 2**20, near, on("openai", b"wide", 0.05, Link(0.0, 63e9))) == b"near"


def test_a_bus_comes_after_the_way_and_takes_its_own_time_for_each_byte():
    bus = Link(0.25, 100.0)
    way = Way((Link(0.001, 50.0),), setup_s=0.1)
    assert way.and_then(bus).transfer_s(1000) == pytest.approx(way.transfer_s(1000) + 0.25 + 10.0)
    itself = CandidateInput(PeerId(b"self"), Path(RttSource.SELF), (), bus=bus)
    assert transfer_time(itself, 1000, "openai") == pytest.approx(10.25)
    assert transfer_time(itself, 1000, "onnx") == 0.0


def test_a_fabric_that_costs_more_than_the_stream_is_not_counted():
    slow = candidate(b"slow", 0.001, Way((Link(1.0, 1e6),)))
    assert transfer_time(slow, 10**6) == STREAM.transfer_s(10**6)
    assert transfer_time(candidate(b"x", 0.001), 0) == 0.0
    itself = CandidateInput(PeerId(b"self"), Path(RttSource.SELF), ())
    assert transfer_time(itself, 10**9) == 0.0
