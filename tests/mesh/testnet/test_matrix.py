"""A test mesh out of a matrix: the same files, the same round trips and the same nodes as in the simulator."""

import io
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import ConfigError
from mesh.testnet import matrix as matrices
from mesh.testnet.command import Wish, choose_topology
from mesh.testnet.matrix import JITTER_SHARE_MAX, drawn, matrix_topology, read_matrix
from sim.coordinates.matrices import RttMatrix, load
from sim.luck import Streams

SQUARE = "0,10,80\n10,0,30\n80,30,0\n"
PAIRS = "a,b,rtt_ms\nGhent,Lyon,10\nGhent,Oslo,80\nLyon,Oslo,30\n"
SLICED = "a,b,rtt_ms,slice\n" + "".join(
    f"{pair},{rtt_ms},{number}\n"
    for pair in ("Ghent,Lyon", "Ghent,Oslo", "Lyon,Oslo")
    for number, rtt_ms in enumerate((9.9, 10, 30))
)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npz(**arrays: object) -> bytes:
    held = io.BytesIO()
    np.savez(held, **{name: np.asarray(value) for name, value in arrays.items()})
    return held.getvalue()


SERIES = [[[0, 10, 80], [10, 0, 30], [80, 30, 0]], [[0, 12, 80], [12, 0, np.nan], [80, np.nan, 0]]]
FORMS = [
    ("square.csv", SQUARE),
    ("gaps.csv", "0,10,80\n-,0,30\n,,0\n"),
    ("pairs.csv", PAIRS),
    ("sliced.csv", SLICED),
    ("upper.npz", npz(upper=[[10, 80, 30], [12, 82, 0], [11, 9e9, -4]], n=3)),
    ("flat.npz", npz(upper=[10, 80, 30], n=3)),
    ("rtt.npz", npz(rtt=SERIES)),
    ("tens.npz", npz(rtt10ms=np.array([[0, 1, 8], [1, 0, 3], [8, 3, 0]], dtype=np.uint16))),
]


@pytest.mark.parametrize(("name", "content"), FORMS, ids=[name for name, _ in FORMS])
def test_every_form_means_what_it_means_to_the_simulator(name: str, content: str | bytes, tmp_path: Path) -> None:
    path = written(tmp_path, name, content)
    mesh, truth = matrix_topology(path), load(path)
    middle_ms = truth.middle() * 1e3
    assert tuple(node.region for node in mesh.nodes) == truth.names
    for i in range(truth.nodes):
        for j in range(truth.nodes):
            if i != j:
                assert mesh.rtt_ms(i, j) == pytest.approx(float(middle_ms[i, j]), rel=1e-5)
                assert mesh.links[i][j].delay_s == mesh.links[j][i].delay_s


@pytest.mark.parametrize(("held", "count", "seed"), [(490, 12, 1), (490, 12, 2), (20, 19, 7), (5, 5, 1), (5, 9, 1)])
def test_the_nodes_that_the_simulator_draws_are_drawn(held: int, count: int, seed: int) -> None:
    luck = Random(seed)
    rtt_s = np.array([[luck.uniform(0.001, 0.1) for _ in range(held)] for _ in range(held)], dtype=np.float32)[None]
    whole = RttMatrix("whole", rtt_s, tuple(str(index) for index in range(held)))
    assert tuple(str(index) for index in drawn(held, count, seed)) == whole.some(count, Streams(seed).of("nodes")).names


def test_nodes_are_called_as_in_the_matrix_where_that_makes_names_of_folders(tmp_path: Path) -> None:
    assert [node.name for node in matrix_topology(written(tmp_path, "a.csv", PAIRS)).nodes] == ["ghent", "lyon", "oslo"]
    same = "a,b,rtt_ms\nGhent,ghent,10\nGhent,../Oslo,80\nghent,../Oslo,30\n"
    assert [node.name for node in matrix_topology(written(tmp_path, "b.csv", same)).nodes] == ["node-0", "node-1", "node-2"]
    assert [node.name for node in matrix_topology(written(tmp_path, "c.csv", SQUARE)).nodes] == ["node-0", "node-1", "node-2"]


def test_a_path_jitters_as_its_slices_vary_and_by_a_hundredth_at_most(tmp_path: Path) -> None:
    steady = matrix_topology(written(tmp_path, "steady.csv", SQUARE))
    assert {link.jitter_s for row in steady.links for link in row} == {0.0}
    calm = matrix_topology(written(tmp_path, "calm.npz", npz(upper=[[100.0, 80, 30], [100.1, 80, 30], [99.9, 80, 30]], n=3)))
    assert calm.links[0][1].jitter_s == pytest.approx(1.4826 * 0.1e-3 / 2**0.5, rel=1e-6)
    wild = matrix_topology(written(tmp_path, "wild.npz", npz(upper=[[100.0, 80, 30], [400, 80, 30], [50, 80, 30]], n=3)))
    assert wild.links[0][1].jitter_s == pytest.approx(JITTER_SHARE_MAX * 0.05)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "1", r"\.npz or a \.csv"),
        ("a.csv", "", "1 nodes|0 nodes|at most"),
        ("a.csv", "0,1\n1,0,2\n", "2 lines"),
        ("a.csv", "0,x\n1,0\n", "could not convert"),
        ("a.csv", "a,b,rtt_ms\nGhent,Lyon\n", "line 2 has 2 columns"),
        ("a.csv", "a,b,rtt_ms\nGhent,Lyon,1\nGhent,Lyon,2\n", "stands there twice"),
        ("a.csv", "a,b,rtt_ms,slice\nGhent,Lyon,1,99999999\n", "slices of 2 nodes"),
        ("a.csv", b"\xff\xfe\x00", "holds no matrix"),
        ("a.csv", "0,-\n-,0\n", "nothing is known of this pair"),
        ("a.npz", b"PK\x03\x04", "holds no matrix"),
        ("a.npz", npz(other=[1]), "neither `upper` and `n`"),
        ("a.npz", npz(upper=[1, 2], n=3), "shape"),
        ("a.npz", npz(upper=[1.0, 2.0], n=10**6), "at most"),
        ("a.npz", npz(rtt=[[1, 2, 3]]), "no square"),
        ("a.npz", npz(rtt=np.array([[None, None], [None, None]], dtype=object)), "holds no matrix"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_what_is_no_matrix_is_refused_by_name(name: str, content: str | bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(ConfigError, match=said):
        matrix_topology(path)


@given(st.binary(max_size=300), st.sampled_from([".csv", ".npz"]))
def test_any_bytes_are_a_matrix_or_refused(data: bytes, suffix: str) -> None:
    try:
        rtt_ms, names = matrices.READERS[suffix](data)
    except matrices.READ_FAULTS:
        return
    assert rtt_ms.shape[1:] == (len(names), len(names))


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_a_damaged_archive_is_a_matrix_or_refused(at: int, change: bytes) -> None:
    data = bytearray(npz(upper=[10, 80, 30], n=3))
    at %= len(data) - len(change)
    data[at : at + len(change)] = change
    try:
        matrices.READERS[".npz"](bytes(data))
    except matrices.READ_FAULTS:
        return


def test_nodes_past_the_matrix_or_the_mesh_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", SQUARE)
    with pytest.raises(ConfigError, match="from 1 to 3; the matrix has 3"):
        matrix_topology(path, 4)
    many = written(tmp_path, "b.npz", npz(rtt=np.full((80, 80), 10.0)))
    with pytest.raises(ConfigError, match="from 1 to 64; a test mesh has 64 at most"):
        matrix_topology(many, 65)
    assert len(matrix_topology(many).nodes) == 12


def test_flags_of_a_matrix_go_with_one_another(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", PAIRS)
    chosen = choose_topology(Wish(matrix=path, nodes=2, seed=3, engines=["none"]))
    assert [node.region for node in chosen.nodes] == [read_matrix(path).names[index] for index in drawn(3, 2, 3)]
    assert {node.engines for node in chosen.nodes} == {("none",)}
    with pytest.raises(ConfigError, match="leave --preset out"):
        choose_topology(Wish(matrix=path, preset="metro"))
    with pytest.raises(ConfigError, match="leave --preset, --matrix and --nodes out"):
        choose_topology(Wish(matrix=path, file=path))
    with pytest.raises(ConfigError, match="give --matrix too"):
        choose_topology(Wish(seed=2))
