"""Lets several processes share the tests of a module: most of their time they wait for timers of the specification."""

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep every n-th test where `CONFORMANCE_SHARE` says so, as in "1/4" for the first of four (`scripts/conformance.py`)."""
    share = os.environ.get("CONFORMANCE_SHARE")
    if share is None:
        return
    number, count = map(int, share.split("/"))
    config.hook.pytest_deselected(items=[item for index, item in enumerate(items) if index % count != number - 1])
    items[:] = items[number - 1 :: count]
