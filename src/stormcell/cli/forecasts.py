"""The verbs that take frames to a verified forecast: train, forecast, verify, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.reading import Reading
from ..errors import InputError
from ..forecasting.bundled import DEFAULT, model_file
from .app import app
from .options import (
    LARGEST_SEED,
    YEAR_MINUTES,
    AnyGrid,
    Config,
    Data,
    Device,
    Model,
    Steps,
    check_range,
    check_results,
    device_named,
    given,
    names_in,
    numbers_in,
    reads_frames,
    runs_of_data,
    whole_numbers_in,
)
from .speaking import minute, note, span, track


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell train radar/ -o rain.safetensors --minutes 15`\n\n"
    "`stormcell train 2016/*.nc -o rain.safetensors --test 2016/0928.nc --past 4 --future 12 --coarsen 2`\n\n"
    "`stormcell train pngs/ -o rain.safetensors --units dBZ --gain 0.5 --offset -32 --missing 255`"
)
@reads_frames
def train(
    context: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write, .safetensors.")],
    reading: Reading,
    coarsen: int,
    model: Annotated[
        str,
        typer.Option(
            help="plain: any quantity. lagrangian: rain that moves, with probabilities and ensembles. auto: this for "
            "rain, that for all else."
        ),
    ] = "auto",
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
    base: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Fine-tune this model, as it is built; `default` comes with Stormcell: rain.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after Ctrl-C or a kill.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop.")] = False,
    crop: Annotated[int, typer.Option(help="Side of the training crops, pixels.", min=8)] = 128,
    batch: Annotated[int, typer.Option(help="Crops an update, of all processes together.", min=1)] = 4,
    hidden: Annotated[str, typer.Option(help="Hidden channels of the layers.")] = "48,48",
    kernel_size: Annotated[int, typer.Option(help="Of all convolutions.", min=1, max=99)] = 3,
    patch: Annotated[
        int | None,
        typer.Option(
            help="Pixels folded into one cell of the network's map: 4, of lagrangian models 8.", min=1, max=64
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest: 0.001, of lagrangian models 0.015; with --from a fifth of that."),
    ] = None,
    device: Device = "auto",
    devices: Annotated[
        int | None, typer.Option(help="Processes on this machine that share each update, a GPU each.", min=1)
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines that do (docs/cluster.md).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of weights and crops.", min=0, max=LARGEST_SEED)] = 0,
    config: Config = None,
) -> None:
    """Train a forecaster on your frames.

    The latest runs (files, or stretches without a gap) choose the best weights; whole runs stay on one side, with a guard
    between. MODEL.training/ beside the model holds the checkpoints and a CSV log.
    """

    from ..data.axes import parse_time
    from ..forecasting.plan import OF_THE_NETWORK, Recipe, option, plan
    from ..forecasting.processes import GO_ON, asked_for, check_shares, launch
    from ..forecasting.train import check_model_path
    from ..forecasting.train import dry_run as measure
    from ..forecasting.train import train as fit

    team = asked_for(devices, nodes)
    if not dry_run and team.first:
        check_model_path(output)
    for said in map(option, OF_THE_NETWORK if base is not None else ()):
        if given(context, said.replace("-", "_")):
            raise InputError(f"--{said} is that of the model which --from names: leave it out")
    check_range("--minutes", minutes, most=YEAR_MINUTES)
    check_range("--learning-rate", learning_rate, most=1.0)
    aside_from = None if test_from is None else parse_time(test_from, "--test-from")
    recipe = Recipe(
        model=model,
        past=past,
        future=future,
        minutes=minutes,
        epochs=epochs,
        crop=crop,
        batch=batch,
        hidden_channels=tuple(whole_numbers_in(hidden, "--hidden", "48,48", most=4096)),
        kernel_size=kernel_size,
        patch=patch,
        learning_rate=learning_rate,
        base=None if base is None else str(base),
        seed=seed,
        device=device_named(device),
    )
    check_shares(team, batch=batch, device=recipe.device)
    if team.count > 1 and team.by is None and not dry_run:
        raise typer.Exit(launch(team, context.obj, advice=GO_ON))
    prepared = plan(
        runs_of_data(data, reading, coarsen),
        recipe,
        validation=runs_of_data(val or [], reading, coarsen),
        test=runs_of_data(test or [], reading, coarsen),
        test_from=aside_from,
        progress=(lambda runs: track(runs, "reading")) if team.first else iter,
    )
    split = prepared.split
    for name, runs in (("training", split.train), ("validation", split.validation), ("set aside", split.test)):
        for run in runs if team.first else ():
            note(f"{name}: {span(run)}")
    if dry_run:
        for key, value in measure(prepared).items():
            typer.echo(f"{key}: {value}")
        return
    before = output.stat().st_mtime if output.exists() else None
    try:
        forecaster = fit(prepared, output, resume=resume)
    except KeyboardInterrupt:
        if not team.first:
            return
        have = f"{output} has the best weights so far; " if output.exists() and before != output.stat().st_mtime else ""
        note(f"stopped. {have}add --resume to the same command to go on")
        raise
    if not team.first:
        return
    validation = forecaster.card["validation"]
    typer.echo(
        f"wrote {output}: validation loss {validation['loss']:.4f} "
        f"({validation['reference']} {validation['reference_loss']:.4f}) "
        f"after {forecaster.card['updates']} updates"
    )


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell forecast radar/ -o now.nc`, with the model that comes with Stormcell\n\n"
    "`stormcell forecast radar/ -m rain.safetensors -o now.nc`\n\n"
    "`stormcell forecast today.nc -m rain.safetensors --steps 18 -o now.nc -o now.gif -o now.png`"
)
@reads_frames
def forecast(
    data: Data,
    output: Annotated[list[Path], typer.Option("-o", "--output", help=".nc, .zarr, .png, .gif or .mp4 (repeatable).")],
    reading: Reading,
    coarsen: int,
    model: Model = Path(DEFAULT),
    steps: Steps = None,
    members: Annotated[
        int | None, typer.Option(help="Make an ensemble of so many; pictures show the first.", min=1, max=1000)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the ensemble.", min=0, max=LARGEST_SEED)] = 0,
    any_grid: AnyGrid = False,
    device: Device = "auto",
) -> None:
    """Forecast from your newest frames. No truth is needed; any number of steps, any frame size."""
    from ..data.axes import grid_spacing
    from ..data.channels import first_channel, static_file
    from ..data.contract import coarsen as coarsened
    from ..data.contract import in_memory
    from ..data.frames import find_files, open_frames
    from ..forecasting.forecast import load, save_frames
    from ..writing import check_writable, whole_file

    pictures = (".png", ".gif", ".mp4")
    for path in output:
        if path.suffix.lower() not in (".nc", ".nc4", ".zarr", *pictures):
            raise InputError(f"{path}: expected a file that ends in .nc, .zarr, .png, .gif or .mp4")
        check_writable(path)
    static = [static_file(said)[0] for said in reading.static]
    inputs = {path.resolve() for path in [*find_files(data), model_file(model), *static]}
    for path in output:
        if path.resolve() in inputs:
            raise InputError(f"{path} is read for this forecast: give another name to -o")
    forecaster = load(model, device=device_named(device))
    frames = coarsened(open_frames(data, **vars(reading)), coarsen)
    if grid_spacing(frames) is None and forecaster.grid_spacing_m is not None:
        note(
            f"the files do not say how large a pixel is; it is taken for {forecaster.grid_spacing_m / 1000:g} km, as in training"
        )
    fcst = forecaster.forecast(frames, steps, members=members, seed=seed, any_grid=any_grid)
    past = in_memory(first_channel(frames).isel(time=slice(-forecaster.past, None)))
    shown = fcst.isel(member=0, drop=True) if "member" in fcst.dims else fcst
    for path in output:
        if path.suffix.lower() not in pictures:
            save_frames(fcst, path)
        else:
            from ..report import animate, panels, save

            with whole_file(path) as temporary:
                if path.suffix.lower() == ".png":
                    save(panels(shown, past=past), temporary)
                else:
                    animate(shown, temporary, past=past)
        typer.echo(f"wrote {path}: {span(fcst)}, from {minute(fcst.forecast_reference_time.values)}")


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell verify 2017/ -m rain.safetensors -o scores.json --report report.html`\n\n"
    "`stormcell verify 2017/ -m rain.safetensors -o scores.json --against persistence,s-prog,steps --thresholds 0.5,2,5`"
)
@reads_frames
def verify(
    context: typer.Context,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="Scores to write, .json.")],
    reading: Reading,
    coarsen: int,
    model: Model = Path(DEFAULT),
    against: Annotated[
        str | None,
        typer.Option(
            help="Baselines: persistence, optical-flow (both if left out), s-prog, steps; of what is not rain "
            "persistence, climatology, damped-persistence (all if left out)."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Report to write, .html.")] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Of events, mm/h or the model's unit; 0.5,2,5,10 for rain, none for all else.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Widths of FSS windows, pixels.")] = "5,11,21",
    steps: Steps = None,
    members: Annotated[
        int | None, typer.Option(help="Score the model's ensemble of so many too.", min=2, max=1000)
    ] = None,
    every: Annotated[float, typer.Option(help="Minutes between cases; 0: from every frame.", min=0)] = 0.0,
    any_grid: AnyGrid = False,
    device: Device = "auto",
    devices: Annotated[int | None, typer.Option(help="Processes on this machine that share the cases.", min=1)] = None,
) -> None:
    """Forecast from every start time in DATA, and score the forecasts against what followed.

    Frames that the model was trained or chosen on are left out.
    """
    from ..forecasting.forecast import load
    from ..forecasting.processes import AGAIN, asked_for, check_devices, launch
    from ..forecasting.tally import scores_to_json
    from ..forecasting.verify import hindcast, usual_rivals
    from ..report import print_scores, report_verification
    from ..writing import whole_file

    team = asked_for(devices, None)
    if team.first:
        check_results(output, report)
    widths = whole_numbers_in(scales, "--scales", "5,11", most=10_000)
    device = device_named(device)
    check_devices(team, device)
    if team.count > 1 and team.by is None:
        raise typer.Exit(launch(team, context.obj, advice=AGAIN))
    forecaster = load(model, device=team.own(device))
    runs = runs_of_data(data, reading, coarsen)
    if against is None:
        names = usual_rivals(forecaster, runs)
        if forecaster.transform.rain and len(names) == 1 and team.first:
            note("optical flow is left out: pip install 'stormcell[radar]' to compare with it")
    else:
        names = names_in(against)
    result = hindcast(
        forecaster,
        runs,
        against=names,
        steps=steps,
        members=members,
        every_minutes=every,
        thresholds=None if thresholds is None else numbers_in(thresholds, "--thresholds", "0.5,2,5"),
        scales=widths,
        any_grid=any_grid,
        progress=lambda cases: track(cases, "verifying") if team.first else iter(cases),
    )
    if not team.first:
        return
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
    seed: Annotated[int, typer.Option(help="Of rain, weights and crops.", min=0, max=LARGEST_SEED)] = 0,
) -> None:
    """See it work, without data: make rain, train, forecast unseen storms, verify, report. Under three minutes."""
    from ..demo import run_demo

    if not run_demo(output, minutes=minutes, seed=seed):
        raise typer.Exit(1)
