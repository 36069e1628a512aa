"""The guest that tests share, booted by the first that asks for it; who needs another machine boots one (`guests.booted`)."""

import compileall
import os

import pytest
from guests import ROOT, Machine, booted, missing


@pytest.fixture(scope="session")
def _can_boot():
    """Skip where guests cannot be booted; under `make test-guest` that is a failure."""
    if cause := missing():
        (pytest.fail if os.environ.get("ISOCHRONE_GUEST") == "required" else pytest.skip)(cause)
    for folder in ("protocol", "mesh", "sim"):  # an emulated processor compiles for a minute
        compileall.compile_dir(ROOT / folder, quiet=1)


@pytest.fixture
def can_boot(_can_boot):
    """For tests that boot machines of their own."""


@pytest.fixture(scope="session")
def guest(_can_boot):
    """The shared guest. A test leaves no interfaces, namespaces and processes behind in it."""
    with booted(Machine()) as guest:
        yield guest
