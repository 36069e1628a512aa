"""The foreign programs, started once; each test has a node of its own with a new identity."""

import pytest
from foreign import ALL, Foreign


@pytest.fixture(scope="session", params=ALL, ids=lambda implementation: implementation.name)
def foreign(request):
    implementation = request.param
    if not implementation.is_installed:
        pytest.fail(f"{implementation.name} is not installed: run `make test-interop`, which installs it")
    program = Foreign(implementation)
    yield program
    program.stop()


@pytest.fixture(params=["qh3", "aioquic"])
def engine(request):
    return request.param


@pytest.fixture(params=["they dial", "we dial"])
def direction(request):
    return request.param


@pytest.fixture(params=[("qh3", "they dial"), ("aioquic", "we dial")], ids=" ".join)
def pairing(request):
    """Engine and direction for what takes seconds: each of both once."""
    return request.param


@pytest.fixture
def tells_resets(foreign):
    """Skip what takes a peer that tells a reset from an end, and say why it cannot."""
    cause = foreign.implementation.lacks.get("resets")
    if cause:
        pytest.skip(f"{foreign.implementation.name}: {cause}")
