"""Places in echoes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.coordinates import DIMENSIONS, Coordinate, CoordinateConfig, plausible_coordinate
from protocol.places import PLACE_BYTES, decode_place, encode_place

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "coordinates.json").read_text())["places"]

places = st.builds(
    Coordinate,
    vector=st.tuples(*[st.floats(-10.0, 10.0)] * DIMENSIONS),
    height_s=st.floats(0.0, 10.0),
    error=st.floats(0.0, 1.5),
)


@given(place=places)
def test_a_place_comes_back_rounded_to_its_units_and_the_same_bytes_again(place: Coordinate) -> None:
    packed = encode_place(place)
    assert len(packed) == PLACE_BYTES
    back = decode_place(packed)
    assert back is not None
    assert back.vector == pytest.approx(place.vector, abs=1.01e-6)
    assert back.height_s == pytest.approx(place.height_s, abs=0.51e-6)
    assert back.error == pytest.approx(place.error, abs=0.5001 / 160)
    assert plausible_coordinate(back, CoordinateConfig())
    assert encode_place(back) == packed


@given(packed=st.binary(min_size=PLACE_BYTES, max_size=PLACE_BYTES))
def test_whatever_decodes_is_plausible(packed: bytes) -> None:
    place = decode_place(packed)
    assert place is None or plausible_coordinate(place, CoordinateConfig())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, object]) -> None:
    packed = bytes.fromhex(str(vector["place"]))
    told = vector["coordinate"]
    if told is None:
        assert decode_place(packed) is None
        return
    assert isinstance(told, dict)
    place = decode_place(packed)
    assert place is not None
    assert place.vector == pytest.approx(told["vector"], abs=1e-12)
    assert (place.height_s, place.error) == pytest.approx((told["height_s"], told["error"]), abs=1e-12)
    assert encode_place(place) == packed
