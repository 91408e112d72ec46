"""Options that several verbs have, and what a person may write in them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.reading import Reading
from ..errors import InputError, reason

if TYPE_CHECKING:
    import xarray as xr

LARGEST_SEED = 2**32 - 1
YEAR_MINUTES = 366 * 24 * 60
_ABOUT_DATA = "What the files do not say"
Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA…", help="Files, folders or globs: NetCDF, Zarr, HDF5, GRIB, RADOLAN, .npy, .npz, pictures."
    ),
]
Model = Annotated[
    Path, typer.Option("-m", "--model", help="Model file, as `train` writes it; `default` comes with Stormcell: rain.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AnyGrid = Annotated[bool, typer.Option("--any-grid", help="Go on though the grid spacing is not the model's.")]
Steps = Annotated[
    int | None, typer.Option(help="Frames to forecast; as many as in training if left out.", min=1, max=1000)
]


def about_data(
    variable: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_ABOUT_DATA, help="Which variable or array; a,b: a is forecast, b seen beside it."
        ),
    ] = None,
    units: Annotated[
        str | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="mm/h, dBZ, mm (a step) or any name.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="Time of the first frame, 2016-09-28T14:45 (UTC).")
    ] = None,
    step_minutes: Annotated[
        float | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="Time step; finer frames are thinned to it.")
    ] = None,
    missing: Annotated[
        list[float] | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="Code of missing pixels (repeatable).")
    ] = None,
    crs: Annotated[str | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="EPSG:3067, a PROJ string, …")] = None,
    zr: Annotated[
        str | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="a,b of Z = a·R^b; 200,1.6 if nothing is known.")
    ] = None,
    gain: Annotated[
        float | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="Value = gain · pixel + offset.")
    ] = None,
    offset: Annotated[float | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="See --gain.")] = None,
    static: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:VARIABLE]",
            rich_help_panel=_ABOUT_DATA,
            help="A field that does not change, seen beside the frames (repeatable).",
        ),
    ] = None,
    coarsen: Annotated[
        int, typer.Option(rich_help_panel=_ABOUT_DATA, help="Mean of N×N pixels, over the valid ones.", min=1)
    ] = 1,
) -> tuple[Reading, int]:
    pair = None
    if zr is not None:
        numbers = numbers_in(zr, "--zr", "223,1.53")
        if len(numbers) != 2 or min(numbers) <= 0:
            raise InputError(f"--zr takes two positive numbers, such as 223,1.53, not {zr!r}")
        pair = (numbers[0], numbers[1])
    check_range("--step-minutes", step_minutes, most=YEAR_MINUTES)
    for option, number in (("--gain", gain), ("--offset", offset)):
        if number is not None and not math.isfinite(number):
            raise InputError(f"{option} must be a number, not {number}")
    names = [] if variable is None else names_in(variable)
    if variable is not None and (not names or len(set(names)) < len(names)):
        raise InputError(f"--variable takes names with commas between, each once, not {variable!r}")
    which = names if len(names) > 1 else variable
    reading = Reading(which, units, start, step_minutes, missing or None, crs, pair, gain, offset, static or ())
    return reading, coarsen


def reads_frames(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `about_data`; it receives them as `reading` and `coarsen`."""
    shared = inspect.signature(about_data, eval_str=True).parameters
    own = {
        name: parameter
        for name, parameter in inspect.signature(verb, eval_str=True).parameters.items()
        if name not in ("reading", "coarsen")
    }

    @functools.wraps(verb)
    def wrapper(**given: Any) -> None:
        reading, coarsen = about_data(**{name: given.pop(name) for name in shared})
        verb(**given, reading=reading, coarsen=coarsen)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own.values(), *shared.values())]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def names_in(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def check_results(output: Path, report: Path | None) -> None:
    """Raise InputError unless a JSON file, and a page if one is asked for, can be written there."""
    from ..writing import check_writable

    for path, suffix in ((output, ".json"), (report, ".html")):
        if path is not None:
            if path.suffix.lower() != suffix:
                raise InputError(f"{path}: expected a file that ends in {suffix}")
            check_writable(path)


def numbers_in(text: str, option: str, example: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} takes numbers with commas between, such as {example}, not {text!r}")
    return numbers


def whole_numbers_in(text: str, option: str, example: str, most: int) -> list[int]:
    numbers = numbers_in(text, option, example)
    if any(not 1 <= n <= most or n != int(n) for n in numbers):
        raise InputError(f"{option} takes whole numbers from 1 to {most}, such as {example}, not {text!r}")
    return [int(n) for n in numbers]


def check_range(option: str, number: float | None, *, most: float) -> None:
    if number is not None and not 0 < number <= most:
        raise InputError(f"{option} must be above 0 and at most {most:g}, not {number:g}")


def runs_of_data(data: Sequence[str], reading: Reading, coarsen: int) -> list[xr.DataArray]:
    from ..data.frames import open_runs
    from ..data.windows import runs_of

    return runs_of(open_runs(data, reading), coarsen=coarsen)


def device_named(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device knows auto, cpu, cuda and mps, not {name!r}")
    try:
        torch.empty(1, device=name)
    except Exception as error:  # torch raises many kinds for a device that is not there
        raise InputError(f"--device {name} is not to be had here ({reason(error)})") from None
    return name


def configured(context: typer.Context, path: Path | None) -> Path | None:
    """Options from a YAML file; what stands on the command line wins."""
    if path is None:
        return None
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({reason(error)})") from error
    known = {parameter.name: parameter for parameter in context.command.params}
    if not isinstance(options, dict):
        raise InputError(f"{path}: expected lines such as 'past: 4'")
    written = {option.lstrip("-").replace("-", "_"): name for name, p in known.items() for option in p.opts if name}
    options = {str(key).replace("-", "_"): value for key, value in options.items()}
    options = {written.get(key, key): value for key, value in options.items()}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"{path}: unknown option {unknown[0]!r}")
    for key, value in options.items():  # "hidden: [48, 48]" and "val: may/" are what people write
        several = getattr(known[key], "multiple", False) or known[key].nargs == -1
        if several and not isinstance(value, list):
            options[key] = [value]
        elif isinstance(value, list) and not several:
            options[key] = ",".join(map(str, value))
    context.default_map = options
    return path


def given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line or in --config."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def overridden(context: typer.Context, name: str, *, by: str) -> bool:
    """Whether an option comes from --config, and one that excludes it stands on the command line, which wins."""
    sources = [context.get_parameter_source(option) for option in (name, by)]
    return [source and source.name for source in sources] == ["DEFAULT_MAP", "COMMANDLINE"]


Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML with any of these options.", is_eager=True, callback=configured),
]
