"""The command line: one verb a function, which parses, calls, writes, and prints where it went.

Exit 0 done; 2 the user's input is wrong, said in one sentence; 130 Ctrl-C; 1 our own bug. Nothing heavy is imported before a
verb runs, so that --help answers at once.
"""

from __future__ import annotations

import functools
import inspect
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .data.reading import Reading
from .errors import InputError, reason

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T")
app = typer.Typer(
    name="stormcell",
    help="ConvLSTM nowcasting: from your own radar or grid frames to a verified forecast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_YEAR_MINUTES = 366 * 24 * 60
_LARGEST_SEED = 2**32 - 1
_ABOUT_DATA = "What the files do not say"
Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA…", help="Files, folders or globs: NetCDF, Zarr, .npy, .npz, PNG, GIF, TIFF."),
]
Model = Annotated[Path, typer.Option("-m", "--model", help="Model file, as `train` writes it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AnyGrid = Annotated[bool, typer.Option("--any-grid", help="Go on though the grid spacing is not the model's.")]
Steps = Annotated[
    int | None, typer.Option(help="Frames to forecast; as many as in training if left out.", min=1, max=1000)
]


# --- options that every verb with DATA has ---


def _about_data(
    variable: Annotated[str | None, typer.Option(rich_help_panel=_ABOUT_DATA, help="Which variable or array.")] = None,
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
    coarsen: Annotated[
        int, typer.Option(rich_help_panel=_ABOUT_DATA, help="Mean of N×N pixels, over the valid ones.", min=1)
    ] = 1,
) -> tuple[Reading, int]:
    pair = None
    if zr is not None:
        numbers = _numbers(zr, "--zr", "223,1.53")
        if len(numbers) != 2 or min(numbers) <= 0:
            raise InputError(f"--zr takes two positive numbers, such as 223,1.53, not {zr!r}")
        pair = (numbers[0], numbers[1])
    _check_range("--step-minutes", step_minutes, most=_YEAR_MINUTES)
    for option, number in (("--gain", gain), ("--offset", offset)):
        if number is not None and not math.isfinite(number):
            raise InputError(f"{option} must be a number, not {number}")
    reading = Reading(variable, units, start, step_minutes, missing or None, crs, pair, gain, offset)
    return reading, coarsen


def reads_frames(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `_about_data`; it receives them as `reading` and `coarsen`."""
    shared = inspect.signature(_about_data, eval_str=True).parameters
    own = {
        name: parameter
        for name, parameter in inspect.signature(verb, eval_str=True).parameters.items()
        if name not in ("reading", "coarsen")
    }

    @functools.wraps(verb)
    def wrapper(**given: Any) -> None:
        reading, coarsen = _about_data(**{name: given.pop(name) for name in shared})
        verb(**given, reading=reading, coarsen=coarsen)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own.values(), *shared.values())]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _numbers(text: str, option: str, example: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} takes numbers with commas between, such as {example}, not {text!r}")
    return numbers


def _whole_numbers(text: str, option: str, example: str, most: int) -> list[int]:
    numbers = _numbers(text, option, example)
    if any(not 1 <= n <= most or n != int(n) for n in numbers):
        raise InputError(f"{option} takes whole numbers from 1 to {most}, such as {example}, not {text!r}")
    return [int(n) for n in numbers]


def _check_range(option: str, number: float | None, *, most: float) -> None:
    if number is not None and not 0 < number <= most:
        raise InputError(f"{option} must be above 0 and at most {most:g}, not {number:g}")


def _runs(data: Sequence[str], reading: Reading, coarsen: int) -> list[xr.DataArray]:
    from .data.frames import open_runs
    from .data.windows import runs_of

    return runs_of(open_runs(data, reading), coarsen=coarsen)


def _device(name: str) -> str:
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


def _configured(context: typer.Context, path: Path | None) -> Path | None:
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
    options = {str(key).replace("-", "_"): value for key, value in options.items()}
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


# --- verbs ---


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell train radar/ -o rain.safetensors --minutes 15`\n\n"
    "`stormcell train 2016/*.nc -o rain.safetensors --test 2016/0928.nc --past 4 --future 12 --coarsen 2`\n\n"
    "`stormcell train pngs/ -o rain.safetensors --units dBZ --gain 0.5 --offset -32 --missing 255`"
)
@reads_frames
def train(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write, .safetensors.")],
    reading: Reading,
    coarsen: int,
    past: Annotated[int, typer.Option(help="Frames that the model reads.", min=1)] = 4,
    future: Annotated[int, typer.Option(help="Frames that it learns to forecast.", min=1)] = 6,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Stop after so many epochs (50 without --minutes).", min=1)] = None,
    val: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Choose by this file or folder (repeatable).")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Keep this out of training (repeatable).")
    ] = None,
    test_from: Annotated[
        str | None, typer.Option(metavar="TIME", help="Keep all from this time out of training.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after Ctrl-C or a kill.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop.")] = False,
    crop: Annotated[int, typer.Option(help="Side of the training crops, pixels.", min=8)] = 128,
    batch: Annotated[int, typer.Option(help="Crops an update.", min=1)] = 4,
    hidden: Annotated[str, typer.Option(help="Hidden channels of the layers.")] = "48,48",
    kernel_size: Annotated[int, typer.Option(help="Of all convolutions.", min=1, max=99)] = 3,
    patch: Annotated[int, typer.Option(help="Pixels folded into one cell of the network's map.", min=1, max=64)] = 4,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-3,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of weights and crops.", min=0, max=_LARGEST_SEED)] = 0,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with any of these options.", is_eager=True, callback=_configured),
    ] = None,
) -> None:
    """Train a forecaster on your frames.

    The latest runs (files, or stretches without a gap) choose the best weights; whole runs stay on one side, with a guard
    between. MODEL.training/ beside the model holds the checkpoints and a CSV log.
    """

    from .data.axes import parse_time
    from .forecasting.train import Recipe, check_model_path, plan
    from .forecasting.train import dry_run as measure
    from .forecasting.train import train as fit

    if not dry_run:
        check_model_path(output)
    _check_range("--minutes", minutes, most=_YEAR_MINUTES)
    _check_range("--learning-rate", learning_rate, most=1.0)
    aside_from = None if test_from is None else parse_time(test_from, "--test-from")
    recipe = Recipe(
        past=past,
        future=future,
        minutes=minutes,
        epochs=epochs,
        crop=crop,
        batch=batch,
        hidden_channels=tuple(_whole_numbers(hidden, "--hidden", "48,48", most=4096)),
        kernel_size=kernel_size,
        patch=patch,
        learning_rate=learning_rate,
        seed=seed,
        device=_device(device),
    )
    prepared = plan(
        _runs(data, reading, coarsen),
        recipe,
        validation=_runs(val or [], reading, coarsen),
        test=_runs(test or [], reading, coarsen),
        test_from=aside_from,
    )
    split = prepared.split
    for name, runs in (("training", split.train), ("validation", split.validation), ("set aside", split.test)):
        for run in runs:
            _note(f"{name}: {_span(run)}")
    if dry_run:
        for key, value in measure(prepared).items():
            typer.echo(f"{key}: {value}")
        return
    before = output.stat().st_mtime if output.exists() else None
    try:
        forecaster = fit(prepared, output, resume=resume)
    except KeyboardInterrupt:
        have = f"{output} has the best weights so far; " if output.exists() and before != output.stat().st_mtime else ""
        _note(f"stopped. {have}add --resume to the same command to go on")
        raise
    validation = forecaster.card["validation"]
    typer.echo(
        f"wrote {output}: validation loss {validation['loss']:.4f} (persistence {validation['persistence_loss']:.4f}) "
        f"after {forecaster.card['updates']} updates"
    )


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell forecast radar/ -m rain.safetensors -o now.nc`\n\n"
    "`stormcell forecast today.nc -m rain.safetensors --steps 18 -o now.nc -o now.gif -o now.png`"
)
@reads_frames
def forecast(
    data: Data,
    model: Model,
    output: Annotated[list[Path], typer.Option("-o", "--output", help=".nc, .zarr, .png, .gif or .mp4 (repeatable).")],
    reading: Reading,
    coarsen: int,
    steps: Steps = None,
    any_grid: AnyGrid = False,
    device: Device = "auto",
) -> None:
    """Forecast from your newest frames. No truth is needed; any number of steps, any frame size."""
    from .data.frames import coarsen as coarsened
    from .data.frames import find_files, in_memory, open_frames
    from .forecasting.forecast import load, save_frames
    from .writing import check_writable, whole_file

    pictures = (".png", ".gif", ".mp4")
    for path in output:
        if path.suffix.lower() not in (".nc", ".nc4", ".zarr", *pictures):
            raise InputError(f"{path}: expected a file that ends in .nc, .zarr, .png, .gif or .mp4")
        check_writable(path)
    inputs = {path.resolve() for path in [*find_files(data), model]}
    for path in output:
        if path.resolve() in inputs:
            raise InputError(f"{path} is read for this forecast: give another name to -o")
    forecaster = load(model, device=_device(device))
    frames = coarsened(open_frames(data, **vars(reading)), coarsen)
    fcst = forecaster.forecast(frames, steps, any_grid=any_grid)
    past = in_memory(frames.isel(time=slice(-forecaster.past, None)))
    for path in output:
        if path.suffix.lower() not in pictures:
            save_frames(fcst, path)
        else:
            from .report import animate, panels, save

            with whole_file(path) as temporary:
                if path.suffix.lower() == ".png":
                    save(panels(fcst, past=past), temporary)
                else:
                    animate(fcst, temporary, past=past)
        typer.echo(f"wrote {path}: {_span(fcst)}, from {_minute(fcst.forecast_reference_time.values)}")


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell verify 2017/ -m rain.safetensors -o scores.json --report report.html`\n\n"
    "`stormcell verify 2017/ -m rain.safetensors -o scores.json --against persistence --thresholds 0.5,2,5`"
)
@reads_frames
def verify(
    data: Data,
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Scores to write, .json.")],
    reading: Reading,
    coarsen: int,
    against: Annotated[
        str | None,
        typer.Option(help="Baselines: persistence, optical-flow; both if left out, as far as they can be computed."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Report to write, .html.")] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Of events, mm/h or the model's unit; 0.5,2,5,10 for rain.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Widths of FSS windows, pixels.")] = "5,11,21",
    steps: Steps = None,
    any_grid: AnyGrid = False,
    device: Device = "auto",
) -> None:
    """Forecast from every start time in DATA, and score the forecasts against what followed.

    Frames that the model was trained or chosen on are left out.
    """
    from .forecasting.baselines import has_pysteps
    from .forecasting.forecast import load
    from .forecasting.tally import scores_to_json
    from .forecasting.verify import hindcast
    from .report import print_scores, report_verification
    from .writing import check_writable, whole_file

    for path, suffix in ((output, ".json"), (report, ".html")):
        if path is not None:
            if path.suffix.lower() != suffix:
                raise InputError(f"{path}: expected a file that ends in {suffix}")
            check_writable(path)
    widths = _whole_numbers(scales, "--scales", "5,11", most=10_000)
    forecaster = load(model, device=_device(device))
    if against is None:
        names = ["persistence"] + (["optical-flow"] if forecaster.transform.rain and has_pysteps() else [])
        if forecaster.transform.rain and len(names) == 1:
            _note("optical flow is left out: pip install 'stormcell[radar]' to compare with it")
    else:
        names = [name.strip() for name in against.split(",") if name.strip()]
    result = hindcast(
        forecaster,
        _runs(data, reading, coarsen),
        against=names,
        steps=steps,
        thresholds=None if thresholds is None else _numbers(thresholds, "--thresholds", "0.5,2,5"),
        scales=widths,
        any_grid=any_grid,
        progress=lambda cases: track(cases, "verifying"),
    )
    with whole_file(output) as temporary:
        temporary.write_text(scores_to_json(result.scores), encoding="utf-8")
    if report is not None:
        with whole_file(report) as temporary:
            report_verification(
                result.scores,
                temporary,
                samples=result.samples,
                model=str(model),
                data=" ".join(data),
                card=forecaster.card,
            )
    print_scores(result.scores)  # after the files: whoever reads this may stop reading
    for written in (output, report):
        if written is not None:
            typer.echo(f"wrote {written}")


@app.command(epilog="**Example**\n\n`stormcell demo`, then open stormcell-demo/report.html")
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to fill.")] = Path("stormcell-demo"),
    minutes: Annotated[float, typer.Option(help="Time to train.", min=0.05, max=60)] = 1.25,
    seed: Annotated[int, typer.Option(help="Of rain, weights and crops.", min=0, max=_LARGEST_SEED)] = 0,
) -> None:
    """See it work, without data: make rain, train, forecast unseen storms, verify, report. Under three minutes."""
    from .demo import run_demo

    if not run_demo(output, minutes=minutes, seed=seed):
        raise typer.Exit(1)


# --- speaking ---


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _minute(time: Any) -> str:
    from .data.axes import time_text

    return f"{time_text(time)} UTC"


def _span(frames: xr.DataArray) -> str:
    first, last, count = frames.time.values[0], frames.time.values[-1], frames.sizes["time"]
    size = f"{frames.sizes['y']}×{frames.sizes['x']}"
    return f"{count} frames of {size}, {_minute(first)} to {_minute(last)}"


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    yield from bar(items, what, console=console, disable=not console.is_terminal)


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        typer.echo(f"stormcell {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def _share_cores() -> None:
    """Let OpenMP's threads give their core away after a short wait, before torch loads OpenMP.

    They spin by default, and a training beside any other busy program then takes up to seventy times longer
    (docs/log.md). Whoever has set a policy keeps it; elsewhere than with GNU's OpenMP the variable has no effect.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main(arguments: Iterable[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    _share_cores()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "×" or "≥" gets "?"
    try:
        code = app(None if arguments is None else list(arguments), standalone_mode=False)
    except InputError as error:
        _note(f"stormcell: {' '.join(str(error).split())}")
        return 2
    except BrokenPipeError:  # the reader of our output went away; what we write to files is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        _note("stormcell: stopped")
        return 130
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # wrong usage; typer brings its own click, whose exceptions cannot be imported by one name
        return int(error.exit_code)
    return int(code or 0)
