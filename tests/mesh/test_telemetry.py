"""What operators read: metrics with bounded labels, and log lines for people and for programs."""

import json
from io import StringIO

import pytest

from mesh.facts import observe
from mesh.telemetry import MODELS_MAX, PEERS_MAX, RequestOutcome, Telemetry, make_logger
from protocol.errors import ErrorCode
from protocol.gossip import Grafted, Pruned
from protocol.identity import Identity, peer_id_text
from protocol.inference import Feature, Usage
from protocol.load import ModelLoad
from protocol.membership import PeerForgotten, PeerGone, PeerJoined, PeerLeft
from protocol.probe import PeerSuspected
from protocol.records import RecordKind
from protocol.suspicion import Doubted, Refute
from protocol.table import RecordKey


@pytest.fixture
def log() -> StringIO:
    return StringIO()


@pytest.fixture
def telemetry(log: StringIO) -> Telemetry:
    return Telemetry(make_logger("json", "info", log))


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def ended(model: str | None, **changes: object) -> RequestOutcome:
    outcome = RequestOutcome(Feature.CHAT, stream=True, model=model, result="ok", duration_s=0.5)
    for name, change in changes.items():
        setattr(outcome, name, change)
    return outcome


def peer(number: int):
    return Identity.from_seed(number.to_bytes(32, "big")).peer_id


def test_request_is_counted_timed_and_logged(telemetry: Telemetry, log: StringIO) -> None:
    outcome = ended("tiny", first_output_s=0.02, predicted_s=0.02, measured_s=0.03, usage=Usage(7, 3))
    telemetry.request_started(outcome)
    assert value(telemetry, "isochrone_requests_open", feature="chat") == 1
    telemetry.request_ended(outcome)
    assert value(telemetry, "isochrone_requests_open", feature="chat") == 0
    assert value(telemetry, "isochrone_requests_total", model="tiny", feature="chat", outcome="ok") == 1
    assert value(telemetry, "isochrone_request_duration_seconds_sum", feature="chat") == 0.5
    assert value(telemetry, "isochrone_first_output_seconds_sum", feature="chat") == 0.02
    assert value(telemetry, "isochrone_prediction_error_seconds_sum") == pytest.approx(0.01)
    assert value(telemetry, "isochrone_prediction_ratio_sum") == pytest.approx(1.5)
    assert value(telemetry, "isochrone_tokens_total", model="tiny", direction="prompt") == 7
    assert value(telemetry, "isochrone_tokens_total", model="tiny", direction="completion") == 3
    line = json.loads(log.getvalue())
    assert (line["event"], line["model"], line["outcome"], line["duration_ms"]) == ("request ended", "tiny", "ok", 500.0)


def test_failed_request_says_nothing_about_predictions(telemetry: Telemetry) -> None:
    outcome = ended("tiny", result="overloaded", predicted_s=0.02, measured_s=5.0)
    telemetry.request_started(outcome)
    telemetry.request_ended(outcome)
    assert value(telemetry, "isochrone_prediction_error_seconds_count") == 0
    assert value(telemetry, "isochrone_requests_total", model="tiny", feature="chat", outcome="overloaded") == 1


def test_models_past_the_bound_share_a_label(telemetry: Telemetry) -> None:
    for number in range(MODELS_MAX + 2):
        telemetry.request_ended(ended(f"model-{number}"))
    assert value(telemetry, "isochrone_requests_total", model=f"model-{MODELS_MAX - 1}", feature="chat", outcome="ok") == 1
    assert value(telemetry, "isochrone_requests_total", model=f"model-{MODELS_MAX}", feature="chat", outcome="ok") is None
    assert value(telemetry, "isochrone_requests_total", model="other", feature="chat", outcome="ok") == 2


def test_invented_model_makes_no_label(telemetry: Telemetry) -> None:
    telemetry.request_ended(ended(None, result="model_not_found"))
    assert value(telemetry, "isochrone_requests_total", model="", feature="chat", outcome="model_not_found") == 1


def test_peers_past_the_bound_have_no_gauge_until_one_is_forgotten(telemetry: Telemetry) -> None:
    for number in range(PEERS_MAX + 1):
        telemetry.sample_taken(peer(number), 0.02, 0.01)
    assert value(telemetry, "isochrone_peer_rtt_seconds", peer=peer_id_text(peer(0))) == 0.01
    assert value(telemetry, "isochrone_peer_rtt_seconds", peer=peer_id_text(peer(PEERS_MAX))) is None
    assert value(telemetry, "isochrone_rtt_sample_seconds_count") == PEERS_MAX + 1
    telemetry.peer_state_changed(peer(0), "gone")
    telemetry.sample_taken(peer(PEERS_MAX), 0.02, 0.01)
    assert value(telemetry, "isochrone_peer_rtt_seconds", peer=peer_id_text(peer(0))) is None
    assert value(telemetry, "isochrone_peer_rtt_seconds", peer=peer_id_text(peer(PEERS_MAX))) == 0.01


def test_state_without_peers_disappears(telemetry: Telemetry) -> None:
    telemetry.peers_counted({"alive": 3, "suspected": 1})
    telemetry.peers_counted({"alive": 4})
    assert value(telemetry, "isochrone_peers", state="alive") == 4
    assert value(telemetry, "isochrone_peers", state="suspected") is None


def test_mesh_facts_are_counted(telemetry: Telemetry, log: StringIO) -> None:
    telemetry.record_accepted(RecordKind.CARD)
    telemetry.record_refused(ErrorCode.BAD_SIGNATURE)
    telemetry.datagrams_counted("in", 2, 100)
    telemetry.datagrams_counted("in", 5, 250)
    telemetry.datagrams_counted("out", 1, 200)
    telemetry.stale_counted({ErrorCode.REPLAYED: 3, ErrorCode.OLD_SEQUENCE: 0})
    telemetry.stale_counted({ErrorCode.REPLAYED: 5, ErrorCode.OLD_SEQUENCE: 1})
    telemetry.coordinate_moved(0.25)
    telemetry.load_measured(ModelLoad("tiny", running=2, waiting=5, slots=2, queue_s=0.1, service_s=0.1))
    telemetry.peer_faulted(None, ErrorCode.MALFORMED, "bytes")
    assert value(telemetry, "isochrone_records_accepted_total", kind="card") == 1
    assert value(telemetry, "isochrone_records_refused_total", code="bad_signature") == 1
    assert value(telemetry, "isochrone_records_stale_total", code="replayed") == 5
    assert value(telemetry, "isochrone_records_stale_total", code="old_sequence") == 1
    assert value(telemetry, "isochrone_datagram_bytes_total", direction="in") == 250
    assert value(telemetry, "isochrone_datagrams_total", direction="in") == 5
    assert value(telemetry, "isochrone_datagrams_total", direction="out") == 1
    assert value(telemetry, "isochrone_coordinate_error") == 0.25
    assert value(telemetry, "isochrone_engine_waiting", model="tiny") == 5
    assert value(telemetry, "isochrone_engine_running", model="tiny") == 2
    assert value(telemetry, "isochrone_peer_faults_total", code="malformed") == 1
    assert json.loads(log.getvalue())["detail"] == "bytes"


def test_two_nodes_in_one_process_count_apart(telemetry: Telemetry) -> None:
    other = Telemetry(make_logger(file=StringIO()))
    telemetry.record_accepted(RecordKind.EDGES)
    assert value(other, "isochrone_records_accepted_total", kind="edges") is None
    assert b"isochrone_records_accepted_total" in telemetry.render_metrics()[0]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_exception_is_in_the_log(log: StringIO, log_format) -> None:
    telemetry = Telemetry(make_logger(log_format, "info", log))
    try:
        {}["lost"]
    except KeyError:
        telemetry.gateway_failed("a handler")
    assert "KeyError: 'lost'" in log.getvalue()
    assert "a handler" in log.getvalue()


def test_level_is_kept(log: StringIO) -> None:
    telemetry = Telemetry(make_logger("console", "warning", log))
    telemetry.peer_connected(peer(1))
    assert log.getvalue() == ""
    telemetry.peer_faulted(peer(1), ErrorCode.MALFORMED, "bytes")
    assert "malformed" in log.getvalue()


def test_facts_about_peers_become_lines_and_numbers(log: StringIO) -> None:
    telemetry = Telemetry(make_logger("json", "debug", log))
    for fact in (
        PeerJoined(peer(1)),
        PeerSuspected(peer(1), 1.0),
        PeerLeft(peer(1), "no answer to probes"),
        PeerGone(peer(1), "stopped answering"),
        PeerForgotten(peer(1)),
        Grafted(peer(2)),
        Pruned(peer(2)),
        Doubted(RecordKey(b"\x01" * 8)),
        Refute(),
    ):
        observe(telemetry, fact)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line.get("state"), line.get("reason")) for line in lines[:5]] == [
        ("peer state", "alive", None),
        ("peer state", "suspected", None),
        ("peer state", "left", "no answer to probes"),
        ("peer state", "gone", "stopped answering"),
        ("peer forgotten", None, None),
    ]
    assert {line["peer"] for line in lines[:5]} == {peer_id_text(peer(1))}
    assert [line["event"] for line in lines[5:8]] == ["link grafted", "link pruned", "peer doubted"]
    assert lines[8]["level"] == "warning"
    assert value(telemetry, "isochrone_peers_doubted_total") == 1
    assert value(telemetry, "isochrone_refutations_total") == 1


def test_a_peer_that_is_gone_disconnected_or_forgotten_has_no_gauge(telemetry: Telemetry) -> None:
    for leave in (
        lambda: telemetry.peer_disconnected(peer(1), ErrorCode.SURPLUS),
        lambda: telemetry.peer_state_changed(peer(1), "gone"),
        lambda: telemetry.peer_forgotten(peer(1)),
    ):
        telemetry.sample_taken(peer(1), 0.02, 0.01)
        telemetry.peer_state_changed(peer(1), "left", "no answer to probes")  # it may answer again
        assert value(telemetry, "isochrone_peer_rtt_seconds", peer=peer_id_text(peer(1))) == 0.01
        leave()
        assert value(telemetry, "isochrone_peer_rtt_seconds", peer=peer_id_text(peer(1))) is None


def test_links_and_sleep_are_counted(telemetry: Telemetry, log: StringIO) -> None:
    telemetry.links_counted(12, 4, 2)
    telemetry.slept(30.04)
    assert value(telemetry, "isochrone_links", kind="connected") == 12
    assert value(telemetry, "isochrone_links", kind="mesh") == 4
    assert value(telemetry, "isochrone_suspended_seconds_total") == 30.04
    assert json.loads(log.getvalue())["slept_s"] == 30.0
