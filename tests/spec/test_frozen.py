"""What released versions say on the wire is frozen: their vectors stand unchanged among today's."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FROZEN = json.loads((ROOT / "docs" / "spec" / "frozen.json").read_text())
_spec = importlib.util.spec_from_file_location("freeze_vectors", ROOT / "scripts" / "freeze_vectors.py")
assert _spec is not None
freeze_vectors = importlib.util.module_from_spec(_spec)
assert _spec.loader is not None
_spec.loader.exec_module(freeze_vectors)


@pytest.mark.parametrize(
    ("version", "name"), [(version, name) for version, files in FROZEN.items() for name in files], ids=lambda value: value
)
def test_no_vector_of_a_released_version_is_changed_or_gone(version: str, name: str) -> None:
    today = set(freeze_vectors.vector_hashes((ROOT / "docs" / "spec" / "vectors" / name).read_text()))
    frozen = FROZEN[version][name]
    assert len(frozen) > 10
    missing = [number for number, vector in enumerate(frozen) if vector not in today]
    assert missing == [], f"{len(missing)} vectors of {version} have changed: a change of the wire needs a new protocol version"


def test_a_changed_vector_is_noticed() -> None:
    content = '{"comment": "x", "valid": [{"a": 1}, {"b": 2}], "seed": "00"}'
    hashes = freeze_vectors.vector_hashes(content)
    assert len(set(hashes)) == 3
    assert freeze_vectors.vector_hashes(content.replace('"x"', '"y"')) == hashes
    assert set(freeze_vectors.vector_hashes(content.replace("2", "3"))) != set(hashes)
