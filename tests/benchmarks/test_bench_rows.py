"""The table of the fast path: goals are judged as they are written, engines of the bench do what they say, pictures are drawn."""

import os
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
import trio

from benchmarks.__main__ import ALL, APART, line_of, overview
from benchmarks.bench_node import RUSH, STEP_S, TICKER, TOKEN, Sink, Ticker
from benchmarks.flame import LOOP, layers, read_stacks
from benchmarks.harness import Row, cpu_s, told
from benchmarks.icicle import draw, tree_of
from protocol.inference import Feature, Finished, InferenceRequest, Tensor, TensorsReady, TextDelta


@pytest.mark.parametrize(
    ("ours", "theirs", "goal", "is_more_better", "met"),
    [
        (1.0, 2.0, 0.5, False, True),
        (1.1, 2.0, 0.5, False, False),
        (6.0, 2.0, 3.0, True, True),
        (5.9, 2.0, 3.0, True, False),
        (1.0, 2.0, None, False, None),
        (1.0, None, 0.5, False, None),
    ],
)
def test_goal_is_the_least_ratio_of_throughput_and_the_largest_of_the_rest(ours, theirs, goal, is_more_better, met) -> None:
    row = Row("w", ours, "us", "them", theirs, goal, is_more_better)
    assert row.is_met is met
    assert ("missed" in row.goal_text()) is (met is False)
    assert row.goal_text().startswith("≥" if is_more_better else "≤") is (goal is not None)


def test_small_figures_keep_their_digits() -> None:
    assert (told(0.5123, "s"), told(1234.56, "us")) == ("0.51 s", "1,234.6 us")


def test_overview_has_a_line_for_every_benchmark() -> None:
    shown = overview()
    for name in (*ALL, *APART):
        assert line_of(name)
        assert f"  {name} " in shown
        assert line_of(name) in shown


def test_processor_time_of_a_process_grows_with_its_work() -> None:
    before, began = cpu_s(os.getpid()), time.process_time()
    sum(number * number for number in range(3_000_000))
    took_s = time.process_time() - began
    assert cpu_s(os.getpid()) - before == pytest.approx(took_s, abs=3 / os.sysconf("SC_CLK_TCK"))


async def replies_of(engine, request: InferenceRequest) -> list[object]:
    async with engine.run(request) as replies:
        return [reply async for reply in replies]


async def test_sink_tells_how_many_bytes_came() -> None:
    tensor = Tensor("x", "u1", (300,), memoryview(bytes(300)))
    told_by = await replies_of(Sink(), InferenceRequest(bytes(16), Feature.TENSORS, "sink", b"", (tensor,), 10.0, 0))
    (ready,) = [reply for reply in told_by if isinstance(reply, TensorsReady)]
    assert int.from_bytes(ready.tensors[0].data, "little") == 300
    assert isinstance(told_by[-1], Finished)


@pytest.mark.parametrize(("model", "step_s", "least_s"), [(TICKER, STEP_S, 4 * STEP_S), (RUSH, 0.0, 0.0)])
async def test_ticker_makes_as_many_tokens_as_are_asked_for_in_steps(autojump_clock, model, step_s, least_s) -> None:
    request = InferenceRequest(bytes(16), Feature.COMPLETIONS, model, b'{"prompt": "x", "max_tokens": 5}', (), 10.0, 0)
    engine = Ticker(model, step_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.watch)
        began_s = trio.current_time()
        told_by = await replies_of(engine, request)
        took_s = trio.current_time() - began_s
        nursery.cancel_scope.cancel()
    assert [reply.text for reply in told_by if isinstance(reply, TextDelta)] == [TOKEN] * 5
    assert least_s <= took_s <= 6 * step_s


RAW = """main (node.py:9);unrolled_run (trio/_core/_run.py:2);pump (mesh/transport/udp.py:7);send (mesh/transport/udp.py:8) 6
main (node.py:9);unrolled_run (trio/_core/_run.py:2);encode (protocol/wire/writer.py:3);tobytes (numpy/core.py:3) 3
main (node.py:9);unrolled_run (trio/_core/_run.py:5) 1
main (node.py:9);run_up (mesh/up.py:5);run (trio/_core/_run.py:7) 2
main (node.py:9);unrolled_run (trio/_core/_run.py:2);EpollIOManager.get_events (trio/_core/_io_epoll.py:2) 50
"""


def test_time_belongs_to_the_innermost_module_of_ours_and_waiting_to_none() -> None:
    stacks = read_stacks(RAW)
    assert sum(stacks.values()) == 12
    assert layers(stacks) == [("mesh/transport/udp.py", 6 / 12), ("protocol/wire/writer.py", 3 / 12), (LOOP, 3 / 12)]


def test_picture_is_as_wide_as_the_time_and_leaves_out_what_is_too_small(tmp_path: Path) -> None:
    stacks = Counter({("all", "a<b> (mesh/x.py", "c (trio/y.py"): 600, ("all", "d (z.py"): 399, ("all", "e (z.py"): 1})
    assert set(tree_of(stacks).inner) == {"a<b> (mesh/x.py", "d (z.py", "e (z.py"}
    drawn = ET.fromstring(draw({"one": stacks, "none": Counter()}))
    boxes = {group[0].text.partition(" (")[0]: float(group[1].get("width")) for group in drawn if group.tag.endswith("}g")}
    assert boxes == {"a<b>": 719.5, "c": 719.5, "d": 478.3}
