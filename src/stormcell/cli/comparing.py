"""The verb that answers which net is better: compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.reading import Reading
from ..errors import InputError
from .app import app
from .options import (
    LARGEST_SEED,
    YEAR_MINUTES,
    Config,
    Device,
    check_range,
    check_results,
    device_named,
    names_in,
    numbers_in,
    overridden,
    reads_frames,
    runs_of_data,
    whole_numbers_in,
)
from .speaking import note

if TYPE_CHECKING:
    from ..comparing.tasks import Task

_DATASETS = ("moving-mnist",)


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell compare --dataset moving-mnist --minutes 10 -o c.json --report c.html`\n\n"
    "`stormcell compare radar/ -o c.json --minutes 30 --coarsen 2 --models convlstm,conv2d-lstm --match macs`\n\n"
    "`stormcell compare 2015.nc 2016.nc 2017.nc -o c.json --leave-one-out --updates 500`\n\n"
    "`stormcell compare --dataset moving-mnist --models convlstm-5x5-128-64-64,fc-lstm-2048-2048 --updates 20000 -o c.json`"
)
@reads_frames
def compare(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Result to write, .json.")],
    reading: Reading,
    coarsen: int,
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA…]", help="Files, folders or globs of frames; or --dataset.", show_default=False),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="moving-mnist, in the place of DATA.")] = None,
    mnist: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with MNIST's IDX files; else scikit-learn's digits.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Of Moving MNIST: paper or benchmark.")] = "paper",
    test_digits: Annotated[
        int | None, typer.Option(help="Digits in a test sequence; 3 tests out of the domain.", min=1, max=9)
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="Names with commas; the first is compared with the others. All sizes of `stormcell.nn.net`."),
    ] = None,
    match: Annotated[str, typer.Option(help="Make them equal in parameters, macs or time.")] = "parameters",
    updates: Annotated[
        str | None, typer.Option(metavar="N", help="Updates of each run; or of each model, as convlstm=400,….")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="For the whole comparison, in the place of --updates.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each model.", min=1, max=100)] = 3,
    learning_rates: Annotated[str, typer.Option(help="To choose from, on validation.")] = "0.001,0.003,0.01",
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Test each event once, by models that have not seen it.")
    ] = False,
    test: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Test on this file or folder (repeatable).")
    ] = None,
    test_from: Annotated[str | None, typer.Option(metavar="TIME", help="Test on all from this time on.")] = None,
    cases: Annotated[int, typer.Option(help="Most test cases, of each left-out event.", min=1)] = 300,
    past: Annotated[int | None, typer.Option(help="Frames that are read; 4, Moving MNIST 10.", min=1)] = None,
    future: Annotated[int | None, typer.Option(help="Frames to forecast; 6, Moving MNIST 10.", min=1)] = None,
    crop: Annotated[int, typer.Option(help="Side of the crops, pixels.", min=8)] = 64,
    batch: Annotated[int, typer.Option(help="Sequences an update.", min=1)] = 8,
    hidden: Annotated[str, typer.Option(help="Hidden channels of the ConvLSTM's layers.")] = "32,32",
    kernel_size: Annotated[int, typer.Option(help="Of all convolutions, odd.", min=1, max=99)] = 3,
    patch: Annotated[int, typer.Option(help="Pixels folded into one cell of the maps.", min=1, max=64)] = 4,
    against: Annotated[
        str | None, typer.Option(help="Baselines: persistence, optical-flow (both if left out), s-prog, steps.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adam or rmsprop (Shi et al. 2015).")] = "adam",
    report: Annotated[Path | None, typer.Option(help="Report to write, .html.")] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of data, weights and order.", min=0, max=LARGEST_SEED)] = 0,
    config: Config = None,
) -> None:
    """Compare ConvLSTM, Conv2D + LSTM and others on the same data, honestly.

    All are matched in size, each takes its best learning rate by validation, and every seed is tested once on what no training
    has seen. Stopped, the same command goes on. On the CPU, two runs on one machine and as many threads give the same numbers.
    """
    from ..comparing.entries import Shape
    from ..comparing.experiment import DEFAULT_MODELS, MOST_UPDATES, Settings, to_json
    from ..comparing.experiment import compare as run
    from ..report import print_comparison, report_comparison
    from ..writing import whole_file

    check_results(output, report)
    check_range("--minutes", minutes, most=YEAR_MINUTES)
    if overridden(context, "updates", by="minutes"):
        updates = None
    if overridden(context, "minutes", by="updates"):
        minutes = None
    if (updates is None) == (minutes is None):
        raise InputError("give either --updates N or --minutes M: how long to train")
    if kernel_size % 2 == 0:
        raise InputError(f"--kernel-size must be odd, not {kernel_size}")
    rates = tuple(numbers_in(learning_rates, "--learning-rates", "0.001,0.003"))
    for rate in rates:
        check_range("--learning-rates", rate, most=1.0)
    settings = Settings(
        models=DEFAULT_MODELS if models is None else tuple(names_in(models)),
        shape=Shape(tuple(whole_numbers_in(hidden, "--hidden", "32,32", most=4096)), kernel_size, patch),
        match=match,
        updates=None if updates is None else _updates(updates, MOST_UPDATES),
        minutes=minutes,
        seeds=seeds,
        learning_rates=rates,
        batch=batch,
        optimizer=optimizer,
        seed=seed,
        device=device_named(device),
    )
    if dataset is not None:
        if dataset not in _DATASETS:
            raise InputError(f"--dataset knows {', '.join(_DATASETS)}, not {dataset!r}")
        if data or leave_one_out or test or test_from:
            raise InputError(f"--dataset {dataset} has its own split: leave out DATA, --leave-one-out and --test")
        folds = [_moving_mnist(mnist, protocol, test_digits, past, future, cases, seed)]
    else:
        if mnist is not None or test_digits is not None:
            raise InputError("--mnist and --test-digits belong to --dataset moving-mnist")
        if not data:
            raise InputError("name files with frames to compare on, or --dataset moving-mnist")
        lengths = past or 4, future or 6
        folds = _folds(data, reading, coarsen, test, test_from, leave_one_out, lengths, crop, cases, seed, against)
    with _bar() as progress:
        try:
            found = run(folds, settings, output.with_suffix(".runs"), repeat=_repeated, progress=progress)
        except KeyboardInterrupt:
            note("stopped. The same command goes on where it was")
            raise
    with whole_file(output) as temporary:
        temporary.write_text(to_json(found.result), encoding="utf-8")
    if report is not None:
        with whole_file(report) as temporary:
            report_comparison(found.result, temporary, samples=found.samples)
    print_comparison(found.result)
    for written in (output, report):
        if written is not None:
            typer.echo(f"wrote {written}")


def _updates(text: str, most: int) -> int | dict[str, int]:
    parts = [part.strip().rpartition("=") for part in text.split(",")]
    try:
        counts = {name: int(number) for name, _, number in parts}
    except ValueError:
        counts = {}
    if (
        len(counts) != len(parts)
        or any(not 1 <= n <= most for n in counts.values())
        or ("" in counts and len(parts) > 1)
    ):
        raise InputError(f"--updates takes a number, or convlstm=400,conv2d-lstm=600 for each model, not {text!r}")
    return counts.get("", counts)


def _moving_mnist(
    mnist: Path | None,
    protocol: str,
    test_digits: int | None,
    past: int | None,
    future: int | None,
    cases: int,
    seed: int,
) -> Task:
    from ..comparing.tasks import MovingMnistTask
    from ..data.moving_mnist import moving_mnist

    lengths = {"past": past or 10, "future": future or 10}
    sets = moving_mnist(mnist, protocol=protocol, test_number=test_digits, **lengths, seed=seed)
    if mnist is None:
        note(f"digits: {sets.source}; --mnist DIR takes MNIST's own")
    return MovingMnistTask(sets, protocol=protocol, cases=min(cases, len(sets.test)))


def _folds(
    data: Sequence[str],
    reading: Reading,
    coarsen: int,
    test: Sequence[str] | None,
    test_from: str | None,
    leave_one_out: bool,
    lengths: tuple[int, int],
    crop: int,
    cases: int,
    seed: int,
    against: str | None,
) -> list[Task]:
    from ..comparing.tasks import folds_of
    from ..data.axes import parse_time
    from ..forecasting.baselines import check_baselines
    from ..forecasting.motion import has_pysteps

    runs = runs_of_data(data, reading, coarsen)
    if against is None:
        names = ["persistence", *(["optical-flow"] if has_pysteps() else [])]
    else:
        names = check_baselines(names_in(against), rain=True)
    return folds_of(
        runs,
        past=lengths[0],
        future=lengths[1],
        crop=crop,
        cases=cases,
        seed=seed,
        against=names,
        test=runs_of_data(test or [], reading, coarsen),
        test_from=None if test_from is None else parse_time(test_from, "--test-from"),
        leave_one_out=leave_one_out,
    )


def _repeated(updates: str) -> str:
    """This command with --updates in the place of --minutes."""
    given, kept = sys.argv[1:], []
    skip = False
    for word in given:
        if skip or word.startswith(("--minutes=", "--updates=")):
            skip = False
            continue
        if word in ("--minutes", "--updates"):
            skip = True
            continue
        kept.append(word)
    return shlex.join(["stormcell", *kept, "--updates", updates])


@contextmanager
def _bar() -> Iterator[Callable[[int, str], Callable[[int, str], None]]]:
    """A bar over all updates on a terminal; a line for each run elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        said: list[str] = []

        def begin(total: int, text: str) -> Callable[[int, str], None]:
            task = bar.add_task(text, total=total)

            def advance(count: int, text: str) -> None:
                if not console.is_terminal and (not said or said[-1] != text):
                    note(text)
                    said.append(text)
                bar.update(task, advance=count, description=text)

            return advance

        yield begin
