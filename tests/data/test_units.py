"""mm/h, dBZ and the network's range: exact where it must be, and never a missing pixel turned dry."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormcell import InputError
from stormcell.data.units import (
    NO_ECHO_DBZ,
    Transform,
    canonical,
    dbz_to_rain_rate,
    from_rain_rate,
    rain_rate_to_dbz,
    to_rain_rate,
)

PAIRS = st.sampled_from([(200.0, 1.6), (223.0, 1.53), (58.53, 1.56)])


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_marshall_palmer_by_hand() -> None:
    # Z = 200 R^1.6: 1 mm/h is 10·log10(200) = 23.01 dBZ; 10 mm/h is 16 dB more
    np.testing.assert_allclose(rain_rate_to_dbz(array(1, 10)), [23.0103, 39.0103], atol=1e-4)
    np.testing.assert_allclose(dbz_to_rain_rate(array(23.0103, 39.0103)), [1, 10], rtol=1e-4)


@given(PAIRS)
def test_no_echo_and_no_rain_are_one_thing_and_survive_exactly(zr: tuple[float, float]) -> None:
    for dry in (0.0, 1e-9):
        assert rain_rate_to_dbz(array(dry), zr) == NO_ECHO_DBZ
    for silent in (NO_ECHO_DBZ, -99.0, -np.inf):
        assert dbz_to_rain_rate(array(silent), zr) == 0
    transform = Transform(zr=zr)
    for units, value in (("mm/h", 0.0), ("dBZ", NO_ECHO_DBZ)):
        encoded = transform.encode(array(value), units, zr)
        assert encoded == 0
        assert transform.decode(encoded, units, zr) == value
        assert from_rain_rate(to_rain_rate(array(value), units, zr), units, zr) == value


@given(PAIRS, st.floats(0.05, 800), st.sampled_from(["mm/h", "dBZ"]))
def test_rain_survives_the_round_trip(zr: tuple[float, float], rate: float, units: str) -> None:
    value = from_rain_rate(array(rate), units, zr)
    transform = Transform()
    back = transform.decode(transform.encode(value, units, zr), units, zr)
    np.testing.assert_allclose(to_rain_rate(back, units, zr), [rate], rtol=1e-3)


@pytest.mark.parametrize("units", ["mm/h", "dBZ"])
def test_missing_stays_missing(units: str) -> None:
    transform = Transform()
    encoded = transform.encode(array(np.nan, 0), units)
    assert np.isnan(encoded[0])
    assert np.isfinite(encoded[1])
    assert np.isnan(transform.decode(encoded, units)[0])
    assert np.isnan(rain_rate_to_dbz(array(np.nan))[0])
    assert np.isnan(dbz_to_rain_rate(array(np.nan))[0])


def test_what_a_network_makes_of_its_range_is_rain() -> None:
    decoded = Transform().decode(array(-0.3, 0, 0.5, 7), "mm/h")
    assert decoded[0] == decoded[1] == 0
    assert decoded[2] == pytest.approx(float(dbz_to_rain_rate(array(35))[0]), rel=1e-5)
    assert decoded[3] == pytest.approx(float(dbz_to_rain_rate(array(70))[0]), rel=1e-5)


def test_a_plain_quantity_is_scaled_by_its_training_data() -> None:
    values = array(280, 290, np.nan, 300)
    transform = Transform.fit("K", [values[:2], values[2:]])
    assert (transform.low, transform.high) == (290, pytest.approx(290 + np.std([280, 290, 300])))
    np.testing.assert_allclose(transform.decode(transform.encode(values, "K"), "K"), values, rtol=1e-6)
    assert not transform.rain
    with pytest.raises(InputError, match="every pixel of the training frames is missing"):
        Transform.fit("K", [array(np.nan)])
    constant = Transform.fit("K", [array(5, 5)])
    assert np.isfinite(constant.encode(array(5), "K")).all()


def test_what_a_model_accepts() -> None:
    assert Transform().accepts("mm/h")
    assert Transform().accepts("dBZ")
    assert not Transform().accepts("K")
    assert not Transform("K", 0, 1).accepts("mm/h")


@given(PAIRS, st.floats(-100, 100), st.floats(0.1, 100))
def test_it_survives_the_model_file(zr: tuple[float, float], low: float, width: float) -> None:
    transform = Transform("K", low, low + width, zr)
    assert Transform.from_json(json.loads(json.dumps(transform.to_json()))) == transform


@pytest.mark.parametrize(
    ("written", "precipitation", "expected"),
    [
        ("mm/h", False, ("mm/h", 1, False)),
        ("mm h-1", False, ("mm/h", 1, False)),
        ("dbz", False, ("dBZ", 1, False)),
        ("mm hr-1", False, ("mm/h", 1, False)),
        ("mm hour^-1", False, ("mm/h", 1, False)),
        ("mm h**-1", False, ("mm/h", 1, False)),
        ("mm h⁻¹", False, ("mm/h", 1, False)),
        ("mm / hr", False, ("mm/h", 1, False)),
        ("kg m**-2 s**-1", True, ("mm/h", 3600, False)),
        ("mm/d", True, ("mm/h", 1 / 24, False)),
        ("kg m-2 s-1", True, ("mm/h", 3600, False)),
        ("kg m-2 s-1", False, ("kg m-2 s-1", 1, False)),  # evaporation, or any other flux
        ("kg m-2", True, ("mm/h", 1, True)),
        ("mm", True, ("mm/h", 1, True)),
        ("m s-1", False, ("m s-1", 1, False)),  # wind
        ("K", True, ("K", 1, False)),
    ],
)
def test_spellings(written: str, precipitation: bool, expected: tuple[str, float, bool]) -> None:
    assert canonical(written, precipitation=precipitation) == expected


@given(PAIRS, PAIRS)
def test_rates_are_what_encoding_and_decoding_leaves(own: tuple[float, float], frames: tuple[float, float]) -> None:
    transform = Transform(zr=own)
    for units, some in (
        ("mm/h", array(0, 1e-3, 0.05, 0.1, 3, 80, 1e4, np.nan)),
        ("dBZ", array(-np.inf, -32, 5, 7, 30, 90, np.nan)),
    ):
        there_and_back = transform.decode(transform.encode(some, units, frames), "mm/h")
        np.testing.assert_allclose(transform.rates(some, units, frames), there_and_back, rtol=2e-5, atol=1e-6)
