"""A guest boots and runs the project's Python, and says clearly what went wrong when something does."""

import platform
import sys
from dataclasses import replace

import pytest
from guests import INSIDE, GuestError, Machine, booted

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]


def test_guest_runs_the_projects_python_on_a_kernel_of_its_own(guest):
    told = guest.python("tests/guest/inside_facts.py").told
    assert told["python"] == sys.version
    assert told["release"] != platform.release()
    assert told["name"] == "guest"
    assert told["numpy"]


def test_what_a_guest_writes_is_not_written_here_except_in_the_shared_folder(guest, tmp_path):
    marker = tmp_path / "written"
    guest.shell('echo inside >"$1"; cat "$1"; echo shared >"$2/shared"', str(marker), INSIDE)
    assert not marker.exists()
    assert (guest.exchange / "shared").read_text() == "shared\n"


def test_command_that_fails_tells_its_status_and_output(guest):
    with pytest.raises(GuestError, match=r"ended with 3:\n(.|\n)*on the way"):
        guest.shell("echo on the way; exit 3")
    assert guest.shell("exit 3", check=False).status == 3


def test_command_that_takes_too_long_is_killed_and_the_guest_goes_on(guest):
    with pytest.raises(GuestError, match=r"not done after 1 s:\n(.|\n)*begun"):
        guest.shell("echo begun; sleep 1000", time_s_max=1)
    assert guest.run("echo", "still here").output == "still here\n"


def test_guest_that_dies_tells_what_its_console_said_last(can_boot):
    with booted(replace(Machine(), name="mortal", processors=1, memory="1G")) as guest:
        with pytest.raises(GuestError, match=r"guest has ended(.|\n)*sysrq: Trigger a crash") as caught:
            guest.shell("echo 9 >/proc/sys/kernel/printk; echo c >/proc/sysrq-trigger")
        assert "Kernel panic" in str(caught.value)
