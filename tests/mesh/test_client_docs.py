"""What docs/client.md shows is run as it stands, in a process of its own, beside a node of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.node_process import NodeProcess

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: "trio" if "trio" in example else "plain")
def test_the_example_runs(example: str, tmp_path: Path) -> None:
    with NodeProcess("--engine", "echo") as node:
        (tmp_path / "isochrone").symlink_to(node.state_dir)  # the default place, where the example looks
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", example],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert node.peer_id in ran.stdout
        assert ran.stdout.endswith("What is time?")


def test_both_faces_are_shown() -> None:
    assert len(EXAMPLES) == 2
