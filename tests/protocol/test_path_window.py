"""What is kept of a path's quality is what would be worked out anew."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.probe import ProbeConfig
from protocol.probe.quality import PathQuality, PathWindow

CONFIG = ProbeConfig(window_probes=6, offered_max=2)
STEPS = st.lists(
    st.tuples(st.sampled_from(["probe", "offer", "echo", "third", "wait", "look"]), st.integers(0, 9), st.floats(0.0, 4.0)),
    max_size=60,
)


def anew(path: PathWindow, now: float) -> PathQuality | None:
    other = PathWindow(CONFIG)
    other.sent, other.probed, other.offered = path.sent, path.probed, path.offered
    other.jitter_s, other.last_rtt_s, other.measured_at = path.jitter_s, path.last_rtt_s, path.measured_at
    return other.quality(now)


@given(STEPS)
def test_quality_is_that_of_the_moment_whatever_was_asked_before(steps: list[tuple[str, int, float]]) -> None:
    path, now, nonces = PathWindow(CONFIG), 100.0, list[int]()
    for number, (step, which, wait_s) in enumerate(steps):
        nonce = nonces[which % len(nonces)] if nonces else 0
        match step:
            case "probe" | "offer":
                nonces.append(number)
                (path.send_probe if step == "probe" else path.send_echo)(number, now)
            case "echo":
                path.take_echo(nonce, now)
            case "third":
                path.take_third_leg(nonce, now)
            case "wait":
                now += wait_s
            case _:
                assert path.quality(now) == anew(path, now)
        assert path.quality(now) == anew(path, now)


def test_between_two_probes_nothing_is_worked_out() -> None:
    path = PathWindow(CONFIG)
    path.send_probe(1, 0.0)
    path.take_echo(1, 0.01)
    path.send_probe(2, 0.02)
    first = path.quality(0.03)
    assert path.quality(0.03 + CONFIG.overdue_s / 2) is first
    assert path.quality(0.03 + CONFIG.overdue_s) is not first
    assert path.quality(0.01) == anew(path, 0.01)
