"""What others chose to be called is text, wherever it is shown."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.plain import escaped, markup, printable
from mesh.telemetry import Telemetry, make_logger
from mesh.testnet.picture import page
from mesh.trace.lines import line_of

NASTY = "a\x1b[2J\nb\r\u202e<b>\x00\x9b31m"


@given(st.text(st.characters()))
def test_nothing_that_is_shown_steers_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    assert escaped(text).isprintable()
    assert printable(text, keep="\n").replace("\n", "").isprintable()
    if text.isprintable():
        assert printable(text) == escaped(text) == text


def test_log_line_of_people_stays_one_line() -> None:
    out = StringIO()
    log = make_logger("console", "info", out)
    log.info(NASTY, model="\x1b[2J", other=[NASTY])
    assert out.getvalue().count("\n") == 1
    assert printable(out.getvalue(), keep="\n") == out.getvalue()
    assert "\\x1b[2J" in out.getvalue()


def test_message_of_an_exception_in_a_log_steers_nothing() -> None:
    out = StringIO()
    log = make_logger("console", "info", out)
    log.error("failed", exc_info=ValueError(NASTY))
    assert printable(out.getvalue(), keep="\n") == out.getvalue()
    assert "ValueError" in out.getvalue()
    assert "\\x1b" in out.getvalue()


def test_label_of_a_metric_is_text() -> None:
    telemetry = Telemetry(make_logger(file=StringIO()))
    assert telemetry._model_label(NASTY) == escaped(NASTY)


def test_line_of_a_trace_is_one_line() -> None:
    event = {
        "t_s": 0.0, "what": "frame", "sent": False, "stream": NASTY, "protocol": NASTY, "bytes": 1,
        "frame": {"type": NASTY, NASTY: NASTY, "models": [NASTY]},
    }  # fmt: skip
    assert line_of(event).plain.isprintable()
    assert line_of({**event, "what": NASTY, "code": NASTY, "reason": NASTY, "remote": NASTY}).plain.isprintable()


def test_text_in_a_page_ends_no_element() -> None:
    assert markup('<script x="1">\x1b') == "&lt;script x=&quot;1&quot;&gt;"
    told = page("<svg/>", "<script>", ["<script>"], [["<script>\x1b"]], "<script>")
    assert "<script>" not in told
    assert "\x1b" not in told


@pytest.mark.parametrize("text", ["", "plain", "Grüße aus Köln", "数据"])
def test_honest_text_is_left_as_it_is(text: str) -> None:
    assert printable(text) == escaped(text) == text
