"""The compiled core behaves as the sources it was compiled from: the same seeds give the same digests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = str(ROOT / "scripts" / "compiled.py")
COMPILE_S = 900

pytestmark = [pytest.mark.compiled, pytest.mark.timeout(COMPILE_S)]


def ran(*command: str, cwd: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, *command], cwd=cwd, check=False, capture_output=True, text=True, timeout=COMPILE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "settings",
    [
        ("--nodes", "30", "--for", "20", "--seed", "1"),
        ("--nodes", "10", "--for", "30", "--seed", "2", "--faults", "all", "--requests", "6"),
        ("--nodes", "10", "--for", "30", "--seed", "4", "--faults", "clock-rate,crash"),
        ("--nodes", "5", "--for", "10", "--seed", "3", "--tier", "quic"),
    ],
)
def test_compiled_and_plain_runs_have_one_digest(settings: tuple[str, ...], tmp_path: Path) -> None:
    command = ("-m", "sim", *settings, "--json", "--output", str(tmp_path))
    plain = ran(*command, cwd=ROOT)
    compiled = ran(LAUNCHER, *command, cwd=ROOT)
    assert compiled["digest"] == plain["digest"]
    assert compiled["events"] == plain["events"]


def test_what_runs_is_the_compiled_core(tmp_path: Path) -> None:
    told = ran(LAUNCHER, "-c", "import json, protocol.table as table; print(json.dumps({'file': table.__file__}))", cwd=tmp_path)
    assert not str(told["file"]).endswith(".py")
