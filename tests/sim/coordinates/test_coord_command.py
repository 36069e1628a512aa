"""`python -m sim coordinates` from end to end, and that a seed is all that a run follows from."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from sim.__main__ import main
from sim.coordinates.run import Plan, simulate
from sim.coordinates.synthetic import named

ROOT = Path(__file__).parents[3]


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict]:
    assert main(["coordinates", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_methods_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    told = ran(capsys, "synthetic-60", "--pings-per-node", "200", "--seeds", "2", "--method", "vivaldi,serf,random")
    methods = told["methods"]
    assert list(methods) == ["vivaldi", "serf", "random"]
    for name in ("vivaldi", "serf"):
        mean = methods[name]["mean"]
        assert 0.02 < mean["error_p50"] < 0.3
        assert mean["nearest_16_penalty_ms_p90"] < methods["random"]["mean"]["nearest_16_penalty_ms_p90"] / 1.5
        assert mean["request_16_pings"] == 8.0
        assert mean["ping_bytes_per_s"] > 0
        assert mean["gossip_bytes_per_s"] > 0
        assert methods[name]["min"]["error_p50"] <= mean["error_p50"] <= methods[name]["max"]["error_p50"]
        assert list(methods[name]["seeds"]) == ["1", "2"]
    assert methods["random"]["mean"]["error_p50"] is None
    assert told["matrix"]["nodes"] == 60


def test_a_file_a_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = named("synthetic-30", 1)
    assert matrix is not None
    path = tmp_path / "rtt.csv"
    np.savetxt(path, np.nan_to_num(matrix.middle()) * 1e3, delimiter=",")
    folder = tmp_path / "pictures"
    assert main(["coordinates", str(path), "--method", "serf,random", "--pings-per-node", "32", "--plot", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "rtt.csv: 30 nodes, 1 slices" in out
    assert "error p50" in out
    pictures = sorted(file.name for file in folder.iterdir())
    assert pictures == ["error-by-pings.svg", "error.svg", "map-serf.svg", "nearest-64.svg"]
    for name in pictures:
        root = ET.fromstring((folder / name).read_text())
        assert root.tag.endswith("svg")
    lines = (folder / "error.svg").read_text()
    assert lines.count("<polyline") == 1  # choosing at random has no errors
    assert (folder / "map-serf.svg").read_text().count("<circle") == 30


def test_a_series_and_its_changes(capsys: pytest.CaptureFixture[str]) -> None:
    told = ran(capsys, "volatile-20", "--series", "--pings-per-node", "4", "--ahead", "2", "--method", "vivaldi,serf")
    for found in told["methods"].values():
        assert 0.0 < found["mean"]["change_per_slice"] < 0.5
        assert 0.05 < found["mean"]["error_p50"] < 0.6
        assert found["mean"]["pings"] == 20 * 4 * 118


def test_bad_networks_and_liars(capsys: pytest.CaptureFixture[str]) -> None:
    bad = ("--loss", "0.1", "--churn", "0.2", "--nat", "0.33", "--asymmetry", "0.2", "--jitter", "2")
    told = ran(capsys, "synthetic-80", *bad, "--method", "serf", "--pings-per-node", "100")["methods"]["serf"]["mean"]
    assert 0.15 < told["lost"] / told["pings"] < 0.25
    honest = ran(capsys, "synthetic-80", "--method", "serf", "--pings-per-node", "100")["methods"]["serf"]["mean"]
    lied = ran(capsys, "synthetic-80", "--method", "serf", "--pings-per-node", "100", "--liars", "0.2")["methods"]["serf"]["mean"]
    assert lied["error_p90"] > 2.0 * honest["error_p90"]
    assert lied["liars_share"] == pytest.approx(0.2)
    sunk = ran(capsys, "synthetic-80", "--method", "serf", "--liars", "0.1", "--attack", "sinkhole")["methods"]["serf"]["mean"]
    assert sunk["liars_chosen"] > 0.9


def test_nodes_that_join(capsys: pytest.CaptureFixture[str]) -> None:
    told = ran(capsys, "synthetic-60", "--method", "serf", "--pings-per-node", "100", "--joiner", "16x4")["methods"]["serf"][
        "mean"
    ]
    assert told["joiner_error_p50"] == pytest.approx(told["error_p50"], rel=1.5)
    assert told["joiner_nearest_16_ratio_p90"] > 1.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.csv"], "No such file"),
        (["matrix.txt"], "synthetic-N"),
        (["synthetic-2"], "from 3"),
        (["synthetic-20", "--series"], "slices"),
    ],
)
def test_matrix_that_cannot_be_used(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinates", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "oracle"], "choose from"),
        (["--loss", "1.5"], "a share"),
        (["--joiner", "16"], "16x4"),
        (["--asymmetry", "0.5"], "less than 0.5"),
        (["--pings-per-node", "0"], "from 1"),
        (["--set", "x"], "NAME=NUMBER"),
        (["--set", "gravity=1", "--method", "serf"], "nothing to set"),
        (["--tick-every", "nan"], "seconds"),
    ],
)
def test_flags_that_cannot_be_used(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["coordinates", "synthetic-20", *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["coordinates", "--help"])
    out = capsys.readouterr().out
    for word in ("examples:", "synthetic-200", "serf", "sinkhole", "--seeds"):
        assert word in out


def test_same_seed_same_digest_under_every_hash_seed() -> None:
    command = (
        "from sim.coordinates.run import *; from sim.coordinates.synthetic import named; from sim.coordinates.engine import *\n"
    )
    command += "p = Plan(20, Conditions(loss=0.1, churn=0.9, nat=0.2, liars=0.1, jitter_s=0.001), joiner=(4, 2))\n"
    command += "print([simulate(named('synthetic-40', 3), m, p, 3).digest for m in METHODS])"
    told = [
        subprocess.run(
            [sys.executable, "-c", command],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "77")
    ]
    assert told[0] == told[1]
    matrix = named("synthetic-40", 3)
    assert matrix is not None
    assert simulate(matrix, "serf", Plan(20), 3).digest != simulate(matrix, "serf", Plan(20), 4).digest
