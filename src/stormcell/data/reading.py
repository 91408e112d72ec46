"""What files do not say of their frames, said by the user. Light enough for a command line that only wants to answer --help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """The options of `open_frames`, under the same names.

    Attributes:
        variable: which one, where a file holds several; a list of them are channels, the first is forecast.
        units: "mm/h", "dBZ", "mm" (an amount a step), or any name.
        start: time of the first frame (UTC, ISO 8601), where files bear no times.
        step_minutes: time step, where files bear no times; finer frames are thinned to it.
        missing: codes of missing pixels, before gain and offset.
        crs: anything that pyproj takes.
        zr: (a, b) of Z = a·R^b.
        gain, offset: value = gain · pixel + offset.
        static: fields that do not change, FILE or FILE:VARIABLE each, as further channels.
    """

    variable: str | Sequence[str] | None = None
    units: str | None = None
    start: str | None = None
    step_minutes: float | None = None
    missing: float | Sequence[float] | None = None
    crs: str | None = None
    zr: tuple[float, float] | None = None
    gain: float | None = None
    offset: float | None = None
    static: Sequence[str] = ()

    @property
    def changes_values(self) -> bool:
        """Whether anything is said of the values themselves."""
        said = (self.units, self.missing, self.zr, self.gain, self.offset)
        return any(value is not None for value in said)
