"""Units: mm/h ↔ dBZ ↔ the range a network sees. One frozen `Transform` carries it, and lies in every model file.

Rain is one quantity with two units, tied by a Z–R relation Z = a·R^b (Marshall and Palmer 1948: a=200, b=1.6). No echo and
0 mm/h are the same: in dBZ everything at or below NO_ECHO_DBZ. A network sees rain as reflectivity on a linear scale with
exactly 0 for no echo. Any other unit is a plain quantity, which a network sees as (value - mean) / deviation of the
training data. Missing (NaN) stays missing everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

NO_ECHO_DBZ = -32.0  # the lowest value of 8-bit radar products with gain 0.5 and offset -32 (FMI, KNMI, ODIM)
MARSHALL_PALMER = (200.0, 1.6)
DBZ_RANGE = (0.0, 70.0)  # 0 dBZ is 0.04 mm/h, below what radars call rain; 70 dBZ is above all but large hail

Array = npt.NDArray[np.float32]

# Spellings as `_plain_spelling` writes them.
_RAIN_UNITS = {"mm/h": "mm/h", "mm h-1": "mm/h", "mmh-1": "mm/h", "mm per h": "mm/h", "dbz": "dBZ"}
# Units of a precipitation rate as models write them, in mm/h. Only for variables that say they are precipitation.
_RATES = {"kg m-2 s-1": 3600.0, "kg/m2/s": 3600.0, "mm/s": 3600.0, "mm s-1": 3600.0, "m s-1": 3.6e6, "m/s": 3.6e6}
_RATES |= {"kg m-2 h-1": 1.0, "kg/m2/h": 1.0, "mm/day": 1 / 24, "mm day-1": 1 / 24, "mm/d": 1 / 24, "mm d-1": 1 / 24}
# Amounts a time step, in mm.
_AMOUNTS = {"mm": 1.0, "kg m-2": 1.0, "kg/m2": 1.0, "m": 1000.0}


def _plain_spelling(units: str) -> str:
    """One way to write what people write in many: "mm hr^-1", "mm hour-1", "mm h⁻¹", "mm / h", "kg m**-2 s**-1"."""
    text = units.lower().translate(str.maketrans("⁻¹²·.", "-12  ", "^*"))
    text = re.sub(r"(?<![a-z])(hours?|hr)(?![a-z])", "h", text)
    return re.sub(r"\s*/\s*", "/", " ".join(text.split()))


def is_rain(units: str) -> bool:
    """Whether frames in `units` are rain: mm/h and dBZ convert into each other, other units into nothing."""
    return units in ("mm/h", "dBZ")


def canonical(units: str, *, precipitation: bool = False) -> tuple[str, float, bool]:
    """The unit as this program writes it, the factor to it, and whether values are amounts a time step.

    `precipitation` says that the variable calls itself precipitation: only then are kg m-2, mm or m s-1 taken for rain.
    """
    text = _plain_spelling(units)
    if text in _RAIN_UNITS:
        return _RAIN_UNITS[text], 1.0, False
    if precipitation and text in _RATES:
        return "mm/h", _RATES[text], False
    if precipitation and text in _AMOUNTS:
        return "mm/h", _AMOUNTS[text], True
    return units.strip(), 1.0, False


def dbz_to_rain_rate(dbz: Array, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
    """Reflectivity in dBZ → rain rate in mm/h. At or below NO_ECHO_DBZ: exactly 0. NaN stays NaN."""
    a, b = zr
    rate = ((10.0 ** (np.asarray(dbz, dtype=np.float32) / 10.0)) / a) ** (1.0 / b)
    return np.where(dbz <= NO_ECHO_DBZ, np.float32(0), rate.astype(np.float32))


def rain_rate_to_dbz(rate: Array, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
    """Rain rate in mm/h → reflectivity in dBZ. 0 mm/h, and what is weaker than NO_ECHO_DBZ: exactly NO_ECHO_DBZ."""
    a, b = zr
    with np.errstate(divide="ignore", invalid="ignore"):
        dbz = 10.0 * np.log10(a) + 10.0 * b * np.log10(np.asarray(rate, dtype=np.float32))
    dbz = np.where(np.asarray(rate) <= 0, np.float32(NO_ECHO_DBZ), dbz)
    return np.where(dbz < NO_ECHO_DBZ, np.float32(NO_ECHO_DBZ), dbz).astype(np.float32)


def to_rain_rate(values: Array, units: str, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
    """Rain in mm/h or dBZ → mm/h."""
    return dbz_to_rain_rate(values, zr) if units == "dBZ" else np.asarray(values, dtype=np.float32)


def from_rain_rate(rate: Array, units: str, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
    """Rain rate in mm/h → mm/h or dBZ."""
    return rain_rate_to_dbz(rate, zr) if units == "dBZ" else np.asarray(rate, dtype=np.float32)


@dataclass(frozen=True)
class Transform:
    """From values in their unit to the range a network sees, and back.

    Attributes:
        units: "mm/h" for rain (frames in dBZ are read through their own Z–R pair), else the plain quantity's unit.
        low, high: the values seen as 0 and as 1: dBZ for rain, `units` otherwise.
        zr: (a, b) of Z = a·R^b, for rain.
    """

    units: str = "mm/h"
    low: float = DBZ_RANGE[0]
    high: float = DBZ_RANGE[1]
    zr: tuple[float, float] = MARSHALL_PALMER

    @property
    def rain(self) -> bool:
        return is_rain(self.units)

    @classmethod
    def fit(cls, units: str, samples: Sequence[Array]) -> Transform:
        """The scale of a plain quantity: mean and mean + standard deviation of the valid values of all `samples`.

        Raises InputError where all values are missing.
        """
        valid = np.concatenate([sample[np.isfinite(sample)] for sample in samples]).astype(np.float64)
        if valid.size == 0:
            raise InputError("every pixel of the training frames is missing: check --missing and --variable")
        mean, deviation = float(valid.mean()), float(valid.std())
        return cls(units=units, low=mean, high=mean + (deviation or 1.0))

    def accepts(self, units: str) -> bool:
        """Whether frames in `units` can be read."""
        return is_rain(units) if self.rain else units == self.units

    def encode(self, values: Array, units: str, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
        """Values in `units` (dBZ through the frames' own pair `zr`) → the network's range. NaN stays NaN."""
        if not self.rain:
            return ((values - self.low) / (self.high - self.low)).astype(np.float32)
        dbz = rain_rate_to_dbz(to_rain_rate(values, units, zr), self.zr)
        return np.maximum((dbz - self.low) / (self.high - self.low), 0).astype(np.float32)

    def decode(self, encoded: Array, units: str, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
        """The network's range → values in `units`. At or below 0: exactly no echo. Above 1 rain is cut off at 70 dBZ."""
        if not self.rain:
            return (encoded * (self.high - self.low) + self.low).astype(np.float32)
        dbz = (np.minimum(encoded, 1) * (self.high - self.low) + self.low).astype(np.float32)
        rate = np.where(encoded <= 0, np.float32(0), dbz_to_rain_rate(dbz, self.zr))
        return from_rain_rate(rate, units, zr).astype(np.float32)

    def rates(self, values: Array, units: str, zr: tuple[float, float] = MARSHALL_PALMER) -> Array:
        """Values in `units` → mm/h, as if they had been encoded and decoded, but for rounding: of rain."""
        least, most = dbz_to_rain_rate(np.array([self.low, self.high], dtype=np.float32), self.zr)
        rate = to_rain_rate(values, units, zr)
        return np.where(rate <= least, np.float32(0), np.minimum(rate, most)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return {"units": self.units, "low": self.low, "high": self.high, "zr": list(self.zr)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Transform:
        return cls(str(value["units"]), float(value["low"]), float(value["high"]), (value["zr"][0], value["zr"][1]))
