"""Matrices from files: what is read, and what is refused."""

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sim.coordinates.matrices import MatrixError, RttMatrix, load, read_csv, read_npz
from sim.coordinates.synthetic import named


def npz(**members: object) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **members)
    return data.getvalue()


def test_upper_triangle_is_row_by_row_in_ms() -> None:
    matrix = read_npz("a.npz", npz(upper=np.array([[10, 20, 30, 40, 50, 60.0]]), n=4))
    assert matrix.rtt_s[0, 0] == pytest.approx([np.nan, 0.01, 0.02, 0.03], nan_ok=True)
    assert matrix.rtt_s[0, 1, 2:] == pytest.approx([0.04, 0.05])
    assert matrix.rtt_s[0, 3] == pytest.approx([0.03, 0.05, 0.06, np.nan], nan_ok=True)


def test_squares_are_read_with_both_directions() -> None:
    square = np.array([[0, 10, 20], [12, 0, 30], [0, 31, 0.0]])
    matrix = read_npz("a.npz", npz(rtt=square))
    assert matrix.slices == 1
    assert matrix.rtt_s[0, 0, 1] == pytest.approx(0.01)
    assert matrix.rtt_s[0, 1, 0] == pytest.approx(0.012)
    assert matrix.rtt_s[0, 2, 0] == pytest.approx(0.02)  # one direction stands for both
    assert read_npz("a.npz", npz(rtt10ms=np.array([square, square], dtype=np.uint16))).rtt_s[1, 0, 1] == pytest.approx(0.1)


def test_what_is_no_round_trip_is_unknown() -> None:
    square = np.array([[9, np.nan, -1, 0], [np.nan, 9, np.inf, 1e9], [-1, np.inf, 9, 5], [0, 1e9, 5, 9]])
    matrix = read_npz("a.npz", npz(rtt=square))
    assert np.argwhere(np.isfinite(matrix.rtt_s[0])).tolist() == [[2, 3], [3, 2]]


def test_middle_is_the_median_of_what_is_known() -> None:
    planes = np.full((4, 3, 3), np.nan)
    planes[:, 0, 1] = (40, 10, 30, 20)
    planes[:3, 0, 2] = (7, np.nan, 9)
    matrix = read_npz("a.npz", npz(rtt=planes))
    assert matrix.middle()[0, 1] == pytest.approx(0.025)
    assert matrix.middle()[2, 0] == pytest.approx(0.008)
    assert matrix.middle(1, 2)[0, 1] == pytest.approx(0.02)
    assert np.isnan(matrix.middle()[1, 2])


def test_csv_of_lines_and_of_pairs() -> None:
    square = read_csv("a.csv", b"0,10,20\n10,0,\n20,-,0\n")
    assert square.rtt_s[0, 0, 1] == pytest.approx(0.01)
    assert np.isnan(square.rtt_s[0, 1, 2])
    pairs = read_csv("a.csv", b"\xef\xbb\xbfa,b,rtt_ms,slice\noslo,bonn,20,0\noslo,rome,30,0\r\nbonn,oslo,25,1\n")
    assert pairs.names == ("oslo", "bonn", "rome")
    assert pairs.rtt_s[:, 0, 1] == pytest.approx([0.02, 0.025])
    assert np.isnan(pairs.rtt_s[1, 0, 2])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npz(upper=np.ones((1, 5)), n=4), "6 pairs"),
        (npz(rtt=np.ones((3, 4))), "no square"),
        (npz(rtt=np.ones((2, 2))), "at least 3"),
        (npz(rtt=np.zeros((3, 3))), "no pair"),
        (npz(rtt=np.array([["a"] * 3] * 3)), "not numbers"),
        (npz(rtt=np.broadcast_to(np.uint8(0), (9000, 9000))), "at most 3 dimensions"),
        (npz(upper=np.ones(3), n=np.array([1, 2])), "not one number"),
        (npz(other=np.ones((3, 3))), "neither"),
        (b"PK\x03\x04", "no archive"),
    ],
)
def test_npz_that_cannot_be_used_is_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(MatrixError, match=says):
        read_npz("a.npz", data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"1,2\n3,4\n", "at least 3"),
        (b"1,2,3\n1,2,3\n1,2\n", "line 3 has 2"),
        (b"1,2,3\n1,x,3\n1,2,3\n", "line 2"),
        (b"a,b,rtt_ms,when\n", "the header is"),
        (b"a,b,rtt_ms\nx,y\n", "line 2 has 2 columns"),
        (b"a,b,rtt_ms\nx,y,1\nx,y,2\n", "twice"),
        (b"a,b,rtt_ms,slice\nx,y,1,-1\n", "slice -1"),
        (b"a,b,rtt_ms,slice\nx,y,1,9999\ny,z,1,0\n" + b"".join(b"p%d,q,1,0\n" % number for number in range(200)), "the most"),
        (b"\xff\xfe", "no csv"),
    ],
)
def test_csv_that_cannot_be_used_is_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(MatrixError, match=says):
        read_csv("a.csv", data)


def judged(matrix: RttMatrix) -> None:
    assert matrix.rtt_s.shape == (matrix.slices, len(matrix.names), len(matrix.names))
    known = matrix.rtt_s[np.isfinite(matrix.rtt_s)]
    assert len(known)
    assert (known > 0).all()
    assert (known <= 10.0).all()


@given(st.one_of(st.binary(max_size=400), st.text("ab,rtmslice_0123.-\ne", max_size=200).map(str.encode)))
def test_any_bytes_are_a_csv_or_refused(data: bytes) -> None:
    with suppress(MatrixError):
        judged(read_csv("a.csv", data))


GOOD = npz(upper=np.array([[1.0, 2.0, 3.0]]), n=3)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(GOOD)))
def test_a_spoilt_npz_is_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    spoilt = bytearray(GOOD)
    for at, value in changes:
        spoilt[at] = value
    for data in (bytes(spoilt), GOOD[:cut], bytes(spoilt[:cut])):
        with suppress(MatrixError):
            judged(read_npz("a.npz", data))


@given(
    arrays(st.sampled_from([np.float32, np.float64, np.uint16, np.int64]), st.sampled_from([(3, 3), (2, 4, 4), (1, 3, 3), (3,)]))
)
def test_any_numbers_are_a_matrix_or_refused(square: np.ndarray) -> None:
    for key in ("rtt", "rtt10ms"):
        with suppress(MatrixError):
            judged(read_npz("a.npz", npz(**{key: square})))


def test_a_file_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("0,1,2\n1,0,3\n2,3,0\n")
    assert load(path).nodes == 3
    for wrong in (tmp_path / "a.txt", tmp_path / "none.npz", tmp_path):
        with pytest.raises(MatrixError):
            load(wrong)


def test_matrices_by_name_follow_from_the_seed() -> None:
    one, again, other = (named("synthetic-40", seed) for seed in (1, 1, 2))
    assert one is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(one.rtt_s, again.rtt_s, equal_nan=True)
    assert not np.array_equal(one.rtt_s, other.rtt_s, equal_nan=True)
    middle = np.nanpercentile(one.middle(), 50)
    assert 0.1 < middle < 0.25
    series = named("volatile-10", 1)
    assert series is not None
    assert series.slices > 100
    judged(series)
    assert named("rtt.csv", 1) is None
    with pytest.raises(MatrixError):
        named("synthetic-2", 1)
    with pytest.raises(MatrixError):
        named("volatile-5000", 1)


def test_some_of_the_nodes() -> None:
    from random import Random

    whole = named("synthetic-30", 1)
    assert whole is not None
    some = whole.some(7, Random(1))
    assert some.nodes == 7
    picked = [int(name) for name in some.names]
    assert some.rtt_s[0, 2, 5] == whole.rtt_s[0, picked[2], picked[5]]
    assert whole.some(99, Random(1)) is whole
