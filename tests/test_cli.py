"""The command line as a person meets it: what works, and one plain sentence with exit code 2 for what cannot."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from stormcell import load, open_frames
from stormcell.cli import main
from stormcell.data.units import rain_rate_to_dbz
from stormcell.forecasting.forecast import save_frames

from .conftest import make_frames

TRAIN = shlex.split("--model plain --past 3 --future 2 --crop 32 --hidden 4,4 --epochs 1 --device cpu")


@pytest.fixture(scope="module")
def work(rain: xr.DataArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with storms to train on, storms to verify, and a model."""
    folder = tmp_path_factory.mktemp("work")
    save_frames(rain.isel(time=slice(0, 25 * 12)), folder / "train.nc")
    save_frames(rain.isel(time=slice(25 * 12, None)), folder / "new.nc")
    assert main(["train", str(folder / "train.nc"), "-o", str(folder / "m.safetensors"), *TRAIN]) == 0
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


def refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: object) -> None:
    _, err = run(capsys, *arguments, code=2)
    lines = [line for line in err.splitlines() if line.startswith("stormcell: ")]
    assert len(lines) == 1, err
    assert message in lines[0]


# --- what works ---


@pytest.mark.parametrize(
    "verb", [[], ["train"], ["forecast"], ["verify"], ["compare"], ["store"], ["convert"], ["demo"]]
)
def test_help_has_examples(capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    out, _ = run(capsys, *verb, "--help")
    assert "Usage" in out
    assert not verb or f"stormcell {verb[0]}" in out.split("Example")[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[0] == "stormcell 0.1.0\n"


def test_train_says_what_it_does(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = work / "again.safetensors"
    out, err = run(capsys, "train", work / "train.nc", "-o", output, *TRAIN)
    assert out.startswith(f"wrote {output}: validation loss ")
    assert "training: 12 frames of 32×32, 2024-01-01 00:00 UTC to 2024-01-01 00:55 UTC" in err
    assert "(persistence " in err


def test_dry_run_writes_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(work.iterdir())
    out, _ = run(capsys, "train", work / "train.nc", "-o", work / "dry.safetensors", *TRAIN, "--dry-run")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "windows",
        "samples an epoch",
        "parameters",
        "memory",
        "minutes an epoch",
    ]
    assert sorted(work.iterdir()) == before


def test_options_from_a_file(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("model: plain\npast: 2\nfuture: 3\nhidden: 4,4\ncrop: 32\n")
    run(
        capsys,
        "train",
        work / "train.nc",
        "-o",
        tmp_path / "m.safetensors",
        "--config",
        config,
        "--epochs",
        1,
        "--past",
        3,
    )
    made = load(tmp_path / "m.safetensors")
    assert (made.past, made.future) == (3, 3)  # the command line outranks the file
    config.write_text("hidden: [5, 5]\nval: nowhere.nc\n")
    refused(capsys, "nowhere.nc does not exist", "train", work / "train.nc", "-o", "m.safetensors", "--config", config)
    config.write_text("pasta: 2\n")
    refused(capsys, "unknown option 'pasta'", "train", work / "train.nc", "-o", "m.safetensors", "--config", config)


def test_set_aside_is_not_trained_on(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    _, err = run(
        capsys, "train", work / "*.nc", "-o", output, *TRAIN, "--test", work / "new.nc", "--test-from", "2024-01-06"
    )
    assert "set aside" in err
    assert all(entry["end"] < "2024-01-06" for entry in load(output).card["frames"])
    out, _ = run(capsys, "verify", work / "new.nc", "-m", output, "-o", tmp_path / "s.json", "--against", "persistence")
    assert "cases were left out" not in out


def test_forecast_in_every_form(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [tmp_path / f"now{suffix}" for suffix in (".nc", ".zarr", ".png", ".gif", ".mp4")]
    options = [part for name in names for part in ("-o", name)]
    out, _ = run(capsys, "forecast", work / "new.nc", "-m", work / "m.safetensors", "--steps", 4, *options)
    assert len(out.splitlines()) == 5
    fcst = open_frames(tmp_path / "now.nc")
    assert fcst.sizes["time"] == 4
    np.testing.assert_array_equal(open_frames(tmp_path / "now.zarr"), fcst)
    assert iio.imread(tmp_path / "now.png").shape[0] > 200
    assert len(iio.imread(tmp_path / "now.gif")) == 3 + 4
    assert (tmp_path / "now.mp4").read_bytes()[4:8] == b"ftyp"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(n.name for n in names)


def test_a_store_is_made_grown_and_trained_on(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "rain.zarr"
    out, _ = run(capsys, "store", work / "train.nc", "-o", store)
    assert out == f"wrote {store}: 300 frames of 32×32, 2024-01-01 00:00 UTC to 2024-01-08 00:55 UTC\n"
    out, err = run(capsys, "store", work / "train.nc", work / "new.nc", "-o", store)
    assert f"{store} has 300 frames up to 2024-01-08 00:55 UTC; going on from there" in err
    assert out.startswith(f"wrote {store}: 360 frames of 32×32")
    assert run(capsys, "store", work / "*.nc", "-o", store)[0] == f"{store}: nothing is newer\n"
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)
    run(capsys, "train", store, "-o", tmp_path / "m.safetensors", *TRAIN)
    assert "16 times as much as a dry one" in run(capsys, "inspect", tmp_path / "m.safetensors")[0]


def test_verify_writes_a_table_a_json_and_a_report(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("pysteps", reason="optical flow needs pysteps")
    out, _ = run(
        capsys, "verify", work / "new.nc", "-m", work / "m.safetensors", "-o", tmp_path / "s.json",
        "--report", tmp_path / "r.html", "--thresholds", "0.5,2", "--scales", "5",
    )  # fmt: skip
    assert "CSI (threshold in mm/h)" in out
    assert "40 cases in 5 blocks; 95 % intervals" in out
    document = json.loads((tmp_path / "s.json").read_text())
    names = {row["forecaster"] for row in document["scores"]}
    assert names == {"stormcell", "persistence", "optical-flow"}
    page = (tmp_path / "r.html").read_text()
    assert "optical-flow" in page
    row = next(r for r in document["scores"] if r["forecaster"] == "stormcell")
    assert f"{row['thresholds'][0]['csi']:.3f}" in out


def test_verify_against_all_rivals(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("pysteps", reason="rivals need pysteps")
    names = ["persistence", "optical-flow", "s-prog", "steps"]
    out, _ = run(
        capsys, "verify", work / "new.nc", "-m", work / "m.safetensors", "-o", tmp_path / "s.json",
        "--report", tmp_path / "r.html", "--thresholds", "0.5,2", "--scales", "5", "--against", ",".join(names),
    )  # fmt: skip
    document = json.loads((tmp_path / "s.json").read_text())
    rows = {row["forecaster"]: row for row in document["scores"] if row["lead_minutes"] == 10}
    assert list(rows) == ["stormcell", *names]
    assert [rows[name]["members"] for name in names] == [1, 1, 1, 20]
    assert rows["s-prog"]["crps"] == rows["s-prog"]["mae"]
    assert document["rivals"]["steps"]["n_cascade_levels"] == 6
    assert f"{rows['steps']['crps']:.3f} [" in out
    assert "Reliability" in (tmp_path / "r.html").read_text()


def test_pictures_with_gain_offset_and_missing_go_the_whole_way(
    rain: xr.DataArray, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "png").mkdir()
    for frame in rain.isel(time=slice(0, 6 * 12)):
        pixels = np.round((rain_rate_to_dbz(frame.values) + 32) / 0.5).astype(np.uint8)
        pixels[:4] = 255
        name = str(frame.time.values.astype("M8[m]")).replace("-", "").replace(":", "").replace("T", "_")
        Image.fromarray(pixels).save(tmp_path / "png" / f"radar_{name}.png")
    said = ["--units", "dBZ", "--gain", 0.5, "--offset", -32, "--missing", 255]
    model = tmp_path / "m.safetensors"
    run(capsys, "train", tmp_path / "png", "-o", model, *TRAIN, *said)
    run(capsys, "forecast", tmp_path / "png", "-m", model, "-o", tmp_path / "now.nc", *said)
    fcst = open_frames(tmp_path / "now.nc")
    assert fcst.attrs["units"] == "dBZ"
    assert np.isnan(fcst[:, :4]).all()
    assert np.isfinite(fcst[:, 4:]).all()


# --- what cannot work ---


def test_wrong_usage_exits_with_2(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train"],
        ["fly"],
        ["forecast", work / "new.nc"],
        ["train", "x.nc", "-o", "m", "--past", "four"],
    ):
        run(capsys, *arguments, code=2)


def test_bad_options_are_one_sentence(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train = ["train", work / "train.nc", "-o", tmp_path / "m.safetensors"]
    verify = ["verify", work / "new.nc", "-m", work / "m.safetensors", "-o", tmp_path / "s.json"]
    refused(capsys, "--zr takes two positive numbers", *train, "--zr", "200")
    refused(capsys, "--zr takes two positive numbers", *train, "--zr", "1,2,3")
    refused(capsys, "--hidden takes numbers with commas between, such as 48,48, not 'big'", *train, "--hidden", "big")
    refused(capsys, "--hidden takes whole numbers from 1 to 4096", *train, "--hidden", "1e9")
    for nonsense in ("0", "nan", "inf", "1e15"):
        refused(capsys, "--minutes must be above 0", *train, "--minutes", nonsense)
        refused(capsys, "--step-minutes must be above 0", *train, "--step-minutes", nonsense)
    refused(capsys, "--learning-rate must be above 0", *train, "--learning-rate", "nan")
    refused(capsys, "--gain must be a number", *train, "--gain", "nan")
    refused(capsys, "--test-from '' is not a time", *train, "--test-from", "")
    refused(capsys, "sets nothing aside", *train, "--test-from", "2030")
    refused(capsys, "--device knows auto, cpu, cuda and mps, not 'meta'", *train, "--device", "meta")
    refused(capsys, "--test-from 'June' is not a time", *train, "--test-from", "June")
    refused(capsys, "--device cuda:77 is not to be had here", *train, "--device", "cuda:77")
    run(capsys, *train, "--devices", "0", code=2)
    refused(capsys, "a batch of 4 has nothing for some of 6 processes", *train, "--devices", "3", "--nodes", "2")
    refused(
        capsys,
        "--nodes takes this command on each machine, with MASTER_ADDR",
        *train,
        "--nodes",
        "2",
        "--device",
        "cpu",
    )
    refused(capsys, "several processes take --device cuda or cpu", *verify, "--devices", "2", "--device", "cpu:0")
    refused(capsys, "--thresholds takes numbers", *verify, "--thresholds", "heavy")
    refused(capsys, "--scales takes whole numbers", *verify, "--scales", "2.5")
    refused(capsys, "--scales takes numbers", *verify, "--scales", "inf")
    refused(capsys, "--against knows persistence, optical-flow", *verify, "--against", "magic")
    refused(capsys, "fewer than 3 windows of 4 past and 30 future", *train, "--future", 30)
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, data = work / "m.safetensors", work / "new.nc"
    refused(capsys, "does not exist", "train", work / "train.nc", "-o", tmp_path / "no" / "m.safetensors")
    refused(capsys, "a model file ends in .safetensors", "train", work / "train.nc", "-o", tmp_path / "m.pt")
    refused(capsys, "is a folder", "forecast", data, "-m", model, "-o", tmp_path / "now.nc", "-o", directory(tmp_path))
    refused(capsys, "expected a file that ends in .nc", "forecast", data, "-m", model, "-o", tmp_path / "now.tiff")
    refused(capsys, "expected a file that ends in .json", "verify", data, "-m", model, "-o", tmp_path / "s.csv")
    refused(
        capsys, "expected a file that ends in .html", "verify", data, "-m", model, "-o", "s.json", "--report", "r.pdf"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nc"]


def test_nothing_is_overwritten_that_is_read_or_is_no_store(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, data = work / "m.safetensors", tmp_path / "new.nc"
    shutil.copy(work / "new.nc", data)
    before = data.read_bytes()
    refused(capsys, "is read for this forecast", "forecast", data, "-m", model, "-o", data)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "precious.txt").write_text("mine")
    refused(capsys, "mine.zarr is a folder", "forecast", data, "-m", model, "-o", tmp_path / "mine.zarr")
    assert (tmp_path / "mine.zarr" / "precious.txt").read_text() == "mine"
    assert data.read_bytes() == before
    for _ in range(2):  # a store of our own may be replaced
        run(capsys, "forecast", data, "-m", model, "-o", tmp_path / "now.zarr")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell's pipe")
def test_a_reader_that_goes_away_or_knows_no_unicode_loses_nothing(work: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m stormcell verify {work}/new.nc -m {work}/m.safetensors --against persistence"
    subprocess.run(f"{command} -o {tmp_path}/a.json | head -1", shell=True, check=True, stdout=subprocess.DEVNULL)
    json.loads((tmp_path / "a.json").read_text())
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(f"{command} -o {tmp_path}/b.json", shell=True, check=True, env=plain, capture_output=True)
    assert b"40 cases in 5 blocks" in done.stdout
    json.loads((tmp_path / "b.json").read_text())


def directory(folder: Path) -> Path:
    path = folder / "folder.nc"
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file system of 256 KiB, where this machine lets us mount one; otherwise a limit on file size does the same."""
    import resource
    import signal

    save_frames(make_frames(np.random.default_rng(0).random((3, 400, 400))), tmp_path / "big.nc")
    (tmp_path / "out").mkdir()
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for name in ("now.nc", "now.png", "now.gif"):
            refused(
                capsys, "cannot be written", "forecast", tmp_path / "big.nc", "-m", work / "m.safetensors",
                "--steps", 8, "-o", tmp_path / "out" / name,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root and Windows write where others may not")
def test_a_folder_without_permission(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(
        capsys, "cannot be written", "forecast", work / "new.nc", "-m", work / "m.safetensors", "-o", tmp_path / "a.nc"
    )


def test_data_that_does_not_fit_the_model(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def forecast(frames: xr.DataArray, message: str, *more: str) -> None:
        save_frames(frames, tmp_path / "frames.nc")
        refused(
            capsys,
            message,
            "forecast",
            tmp_path / "frames.nc",
            "-m",
            work / "m.safetensors",
            "-o",
            tmp_path / "o.nc",
            *more,
        )
        assert not (tmp_path / "o.nc").exists()

    zeros = np.zeros((6, 32, 32))
    forecast(make_frames(zeros, units="K"), "frames.nc is in K, which does not convert")
    forecast(make_frames(zeros, step_minutes=10), "a frame every 10 min, the model one every 5 min")
    forecast(make_frames(zeros, spacing=500), "give --coarsen 2")
    forecast(make_frames(zeros[:2]), "the model needs 3")
    forecast(make_frames(zeros), "cannot be coarsened by 40", "--coarsen", "40")
    shutil.copy(work / "new.nc", tmp_path / "whole.nc")
    content = (work / "new.nc").read_bytes()
    (tmp_path / "half.nc").write_bytes(content[: len(content) // 2])
    for verb, output in (("forecast", "o.nc"), ("verify", "s.json")):
        refused(capsys, "half.nc", verb, tmp_path / "half.nc", "-m", work / "m.safetensors", "-o", tmp_path / output)
        assert not (tmp_path / output).exists()
    refused(capsys, "is not a model file", "forecast", work / "new.nc", "-m", work / "new.nc", "-o", tmp_path / "o.nc")
    refused(
        capsys, "all 200 cases have frames that this model was trained or chosen on",
        "verify", work / "train.nc", "-m", work / "m.safetensors", "-o", tmp_path / "s.json", "--against", "persistence",
    )  # fmt: skip


def test_threads_give_their_core_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from stormcell.cli import share_cores

    for policy, expected in ((None, "2000"), ("ACTIVE", None)):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if policy:
            monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        share_cores()
        assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_without_the_extras_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from stormcell.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("stormcell: the command line needs typer, which is not installed: pip install")


# --- compare ---

COMPARE = ["--hidden", "8", "--patch", "8", "--seeds", "2", "--batch", "2", "--cases", "8", "--learning-rates", "0.003"]


def test_compare_on_moving_mnist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = ["--dataset", "moving-mnist", "--past", "3", "--future", "2"]
    arguments = [
        "compare",
        *digits,
        *COMPARE,
        "--updates",
        "4",
        "-o",
        tmp_path / "c.json",
        "--report",
        tmp_path / "c.html",
    ]
    monkeypatch.setattr(sys, "argv", ["stormcell", *map(str, arguments)])
    out, err = run(capsys, *arguments)
    assert "digits: scikit-learn's digits" in err
    assert "convlstm: learning rate 0.003" in err
    result = json.loads((tmp_path / "c.json").read_text())
    assert [row["name"] for row in result["rows"]] == [
        "convlstm",
        "conv2d-lstm",
        "conv2d-flatten-lstm",
        "conv2d-flatten-lstm-natural",
    ]
    assert result["repeat"].startswith("stormcell compare --dataset moving-mnist")
    assert result["repeat"].endswith("--updates 4")
    assert f"Verdict: {result['verdict']}"[:60] in out.replace("\n", " ")
    assert "95 % intervals" in out.replace("\n", " ")
    page = (tmp_path / "c.html").read_text()
    for words in (
        "What differs in structure",
        "Learning curves",
        "The same cases by each",
        result["verdict"].split(";")[0],
    ):
        assert words in page
    assert page.count("data:image/png") == 3
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_lagrangian_model_and_its_ensemble(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    model, ensemble = tmp_path / "moving.safetensors", tmp_path / "now.nc"
    arguments = [*TRAIN, "--model", "lagrangian", "--epochs", "1"]
    out, _ = run(capsys, "train", work / "train.nc", "-o", model, *arguments)
    assert "(first guess 0." in out
    out, _ = run(capsys, "train", work / "train.nc", "-o", model, *arguments, "--dry-run")
    assert "minutes an epoch" in out
    run(capsys, "forecast", work / "new.nc", "-m", model, "--members", "5", "-o", ensemble, "-o", tmp_path / "now.png")
    with xr.open_dataset(ensemble) as stored:
        assert stored["rain_rate"].dims == ("member", "time", "y", "x")
        share = (stored["rain_rate"] >= 2).mean("member")
        np.testing.assert_allclose(stored["probability_of_exceedance"].sel(threshold=2), share, atol=1e-6)
    scores = tmp_path / "s.json"
    run(
        capsys, "verify", work / "new.nc", "-m", model, "-o", scores, "--members", "4", "--every", "15", "--scales", "5"
    )
    result = json.loads(scores.read_text())
    assert {row["forecaster"] for row in result["scores"]} >= {"stormcell", "ensemble", "persistence", "optical-flow"}
    assert result["left_out_cases"] == 0  # those between two cases are not held to have been trained on
    refused(capsys, "train one with --model lagrangian", "forecast", work / "new.nc", "-m", work / "m.safetensors",
            "--members", "3", "-o", ensemble)  # fmt: skip
    refused(capsys, "--model knows auto, plain, lagrangian", "train", work / "train.nc", "-o", model, "--model", "best")


def test_the_command_line_beats_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Minutes in the file do not stand in the way of the updates that the repeating command names, and the other way round."""
    config, output = tmp_path / "c.yaml", ["-o", tmp_path / "c.json"]
    settings = [f"{name.lstrip('-')}: {value}" for name, value in zip(COMPARE[::2], COMPARE[1::2])]
    lines = [
        *settings,
        "dataset: moving-mnist",
        "past: 3",
        "future: 2",
        "test-digits: 3",
        "models: convlstm,conv2d-lstm",
    ]
    config.write_text("\n".join([*lines, "minutes: 0.001"]))
    refused(capsys, "minutes are too few", "compare", "--config", config, *output)
    run(capsys, "compare", "--config", config, *output, "--updates", "2")
    result = json.loads((tmp_path / "c.json").read_text())
    assert "sequences of again other digits, 3 in each" in result["facts"]["Test"]
    config.write_text("\n".join([*lines, "updates: 2"]))
    refused(capsys, "minutes are too few", "compare", "--config", config, *output, "--minutes", "0.001")


def test_compare_on_frames(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [
        "--past",
        "3",
        "--future",
        "2",
        "--crop",
        "16",
        "--models",
        "convlstm,conv2d-lstm",
        "--against",
        "persistence",
    ]
    run(capsys, "compare", work / "train.nc", *COMPARE, *lengths, "--updates", "2", "-o", tmp_path / "c.json")
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["units"]["of"] == "blocks of an hour or more"
    assert result["baselines"][0]["name"] == "persistence"


def test_what_compare_cannot_do(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, digits = work / "train.nc", ["--dataset", "moving-mnist"]
    output = ["-o", tmp_path / "c.json"]
    refused(capsys, "either --updates N or --minutes M", "compare", data, *output)
    refused(capsys, "either --updates N or --minutes M", "compare", data, *output, "--updates", "2", "--minutes", "1")
    refused(capsys, "--updates takes a number", "compare", data, *output, "--updates", "many")
    refused(capsys, "--updates takes a number", "compare", data, *output, "--updates", "convlstm=0")
    refused(capsys, "or --dataset moving-mnist", "compare", *output, "--updates", "2")
    refused(capsys, "--dataset knows moving-mnist", "compare", "--dataset", "mnist", *output, "--updates", "2")
    refused(capsys, "has its own split", "compare", data, *digits, *output, "--updates", "2")
    refused(capsys, "two names or more", "compare", *digits, *output, "--updates", "2", "--models", "convlstm")
    refused(capsys, "'lstm' does not fit", "compare", *digits, *output, "--updates", "2", "--models", "convlstm,lstm")
    refused(capsys, "--match knows", "compare", *digits, *output, "--updates", "2", "--match", "weight")
    refused(capsys, "--kernel-size must be odd", "compare", *digits, *output, "--updates", "2", "--kernel-size", "4")
    refused(capsys, "protocol must be one of", "compare", *digits, *output, "--updates", "2", "--protocol", "mine")
    refused(capsys, "has no train-images", "compare", *digits, "--mnist", tmp_path, *output, "--updates", "2")
    refused(
        capsys, "expected a file that ends in .json", "compare", *digits, "-o", tmp_path / "c.txt", "--updates", "2"
    )
    refused(
        capsys, "belong to --dataset moving-mnist", "compare", data, "--test-digits", "3", *output, "--updates", "2"
    )
    refused(capsys, "minutes are too few", "compare", *digits, *output, *COMPARE, "--minutes", "0.001")


def test_a_store_of_what_does_not_fit_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    refused(capsys, "s.nc: a store is a folder that ends in .zarr", "store", work / "train.nc", "-o", tmp_path / "s.nc")
    refused(capsys, "the folder /nowhere does not exist", "store", work / "train.nc", "-o", "/nowhere/s.zarr")
    refused(capsys, "none.nc does not exist", "store", tmp_path / "none.nc", "-o", tmp_path / "s.zarr")
    save_frames(open_frames(work / "new.nc"), tmp_path / "other.zarr")
    message = "other.zarr is there already, and `stormcell store` has not made it"
    refused(capsys, message, "store", work / "train.nc", "-o", tmp_path / "other.zarr")
    run(capsys, "store", work / "train.nc", "-o", tmp_path / "s.zarr")
    message = "new.nc has another grid (16×16 pixels)"
    refused(capsys, message, "store", work / "new.nc", "-o", tmp_path / "s.zarr", "--coarsen", 2)
    message = "train.nc begins at 2024-01-01 00:00:00, and"
    refused(capsys, message, "store", work / "new.nc", work / "train.nc", "-o", tmp_path / "t.zarr")
