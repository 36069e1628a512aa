"""What `.ci/run` makes of a machine that cannot run virtual machines, and of tests in them that fail or hang."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(
    folder: Path, *, deps: str = "exit 0", kernel: str = "exit 0", tests: str = "exit 0", **environment: str
) -> tuple[int, str]:
    """Run it with stand-ins for all that it starts; its exit status, and what it says of its last step."""
    programs = {"scripts/deps.sh": deps, ".venv/bin/python": kernel, "bin/make": f"[ $1 != test-guest ] || {{ {tests}; }}"}
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    for name, script in programs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    variables = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", **environment}
    ended = subprocess.run(
        [folder / ".ci/run"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return ended.returncode, ended.stdout.partition("== guest_tests\n")[2]


def test_tests_in_virtual_machines_run_where_they_can(tmp_path: Path) -> None:
    status, said = run(tmp_path, tests="echo booted")
    assert (status, said.splitlines()[0]) == (0, "booted")


@pytest.mark.parametrize("missing", ["deps", "kernel"])
def test_a_machine_that_cannot_have_them_is_told_and_does_not_fail(tmp_path: Path, missing: str) -> None:
    status, said = run(tmp_path, tests="exit 1", **{missing: "echo trying; echo as root, run: apt-get install qemu >&2; exit 69"})
    assert status == 0
    assert said.splitlines()[:3] == [
        "trying",
        "as root, run: apt-get install qemu",
        "guest tests: not run here: as root, run: apt-get install qemu",
    ]


def test_a_download_that_hangs_is_given_up(tmp_path: Path) -> None:
    status, said = run(tmp_path, kernel="exec sleep 1000", tests="exit 1", GUEST_READY_S_MAX="1")
    assert status == 0
    assert said.startswith("guest tests: not run here: '.venv/bin/python scripts/guest.py' took more than 1 s\n")


@pytest.mark.parametrize("broken", [{"tests": "exit 2"}, {"deps": "exit 2"}, {"kernel": "exit 70"}])
def test_what_fails_fails_the_run(tmp_path: Path, broken: dict[str, str]) -> None:
    assert run(tmp_path, **broken)[0] != 0


def test_tests_that_hang_fail_the_run(tmp_path: Path) -> None:
    assert run(tmp_path, tests="sleep 1000", GUEST_TESTS_S_MAX="1")[0] == 124
