"""The report is read back with an HTML parser: what stands in its tables is what the scores say."""

from __future__ import annotations

import base64
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stormcell.errors import InputError
from stormcell.forecasting.tally import Tally
from stormcell.report import Sample, write_report

INTERVAL = "95 % intervals from a bootstrap over 12 blocks of 60 minutes"
TOO_FEW = "too few blocks for an interval (3; 5 are needed)"
FORECASTERS = ("stormcell", "persistence", "optical-flow")


def make_scores(
    *,
    units: str = "mm/h",
    forecasters: tuple[str, ...] = FORECASTERS,
    thresholds: tuple[float, ...] = (0.1, 0.5, 2.0),
    scales: tuple[int, ...] = (1, 5),
    intervals: bool = True,
) -> xr.Dataset:
    random = np.random.default_rng(3)
    sizes = {
        "forecaster": len(forecasters),
        "lead_time": 3,
        "threshold": len(thresholds),
        "scale": len(scales),
        "bound": 2,
    }
    plain, events = ("forecaster", "lead_time"), ("forecaster", "lead_time", "threshold")
    dims = dict.fromkeys(("csi", "pod", "far", "frequency_bias"), events)
    dims |= dict.fromkeys(("mse", "mae", "correlation", "wet_area", "mean_value"), plain)
    dims |= {"fss": (*events, "scale")} if scales else {}
    scores = xr.Dataset({name: (d, random.uniform(0.2, 0.8, [sizes[one] for one in d])) for name, d in dims.items()})
    for name in dims:
        if name not in ("wet_area", "mean_value"):
            room = np.array([-0.05, 0.05]) if intervals else np.array([np.nan, np.nan])
            scores[f"{name}_interval"] = scores[name] + xr.DataArray(room, dims="bound")
    for name in ("hits", "misses", "false_alarms", "correct_negatives"):
        scores[name] = (events, random.integers(0, 99999, [sizes[one] for one in events]))
    for name in ("observed_wet_area", "observed_mean", "valid_share"):
        scores[name] = ("lead_time", random.uniform(0.2, 0.8, 3))
    scores["cases"] = ("lead_time", np.array([40, 39, 38]))
    leads = (np.array([5, 30, 60]) * np.timedelta64(1, "m")).astype("timedelta64[ns]")
    scores = scores.assign_coords(
        forecaster=list(forecasters), lead_time=leads, threshold=list(thresholds), bound=["low", "high"]
    )
    if scales:
        scores = scores.assign_coords(scale=list(scales), scale_km=("scale", 0.5 * np.array(scales)))
    attrs = {"units": units, "cases": 40, "blocks": 12 if intervals else 3, "block_minutes": 60}
    return scores.assign_attrs(**attrs, interval=INTERVAL if intervals else TOO_FEW, wet_threshold=thresholds[0])


def sample() -> Sample:
    start, step = np.datetime64("2016-09-28T14:50", "ns"), np.timedelta64(5, "m")
    time = start + step * np.arange(1, 4)
    forecast = xr.DataArray(
        np.random.default_rng(0).gamma(0.3, 3.0, (3, 20, 20)).astype("float32"),
        dims=("time", "y", "x"),
        coords={"time": time, "lead_time": ("time", time - start), "y": np.arange(20), "x": np.arange(20)},
        attrs={"units": "mm/h"},
    )
    return Sample("Rain <i>and</i> shine", {"observed": forecast.drop_vars("lead_time"), "stormcell": forecast})


class Page(HTMLParser):
    """The parts of a page that tests look at: words, images and tables (heading → rows of cells)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.images, self.tables = "", [], {}
        self.tags: list[str] = []
        self._heading, self._collect = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag in ("h1", "h3", "td", "th"):
            self._collect = ""
        if tag == "table":
            self.tables[self._heading] = []
        if tag == "tr":
            self.tables[self._heading].append([])

    def handle_endtag(self, tag: str) -> None:
        if tag == "h3":
            self._heading = self._collect.strip()
        if tag in ("td", "th"):
            self.tables[self._heading][-1].append(" ".join(self._collect.split(" ")).strip())

    def handle_data(self, data: str) -> None:
        self.words += data
        self._collect += data


def write(path: Path, scores: xr.Dataset, **options: object) -> tuple[Page, str]:
    given = {"samples": [], "title": "A report", "facts": {}, **options}
    write_report(scores, path / "page.part", **given)
    text = (path / "page.part").read_text(encoding="utf-8")
    return Page(text), text


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return write(
        tmp_path_factory.mktemp("report"),
        make_scores(),
        samples=[sample()],
        title="<script>alert('x')</script> & \"more\"",
        facts={"Model": "m.safetensors", "Data <b>": "radar/*.h5"},
        notes=["Trained on <u>other</u> days."],
    )


def test_every_forecaster_threshold_and_scale_is_there(full: tuple[Page, str]) -> None:
    page, _ = full
    for name in FORECASTERS:
        assert page.words.count(name) >= 9
    assert list(page.tables) == ["0.1 mm/h or more", "0.5 mm/h or more", "2 mm/h or more", "All values"]
    assert "FSS 5 px (2.5 km)" in page.tables["2 mm/h or more"][0]
    alts = " ".join(str(image["alt"]) for image in page.images)
    for part in (
        "CSI, 0.1 mm/h",
        "CSI, 2 mm/h",
        "POD, 0.5 mm/h",
        "FAR, 2 mm/h",
        "Frequency bias",
        "FSS, 0.5 mm/h, 5 px",
    ):
        assert part in alts
    for part in ("MSE", "MAE", "Correlation", "Wet area", "Mean value"):
        assert f"{part}:" in alts


def test_numbers_are_those_of_the_scores(full: tuple[Page, str]) -> None:
    page, scores = full[0], make_scores()
    for threshold in scores.threshold.values:
        header, *rows = page.tables[f"{threshold:g} mm/h or more"]
        assert len(rows) == 9
        places = [(lead, name) for lead in scores.lead_time.values for name in FORECASTERS]
        for row, (lead, forecaster) in zip(rows, places, strict=True):
            at = {"lead_time": lead, "forecaster": forecaster, "threshold": threshold}
            cells = dict(zip(header, row, strict=True))
            minutes = lead / np.timedelta64(1, "m")
            assert cells["Lead time, forecaster"] == f"+{minutes:.0f} min {forecaster}"
            for column, name, further in (
                ("CSI", "csi", {}),
                ("POD", "pod", {}),
                ("FAR", "far", {}),
                ("Frequency bias", "frequency_bias", {}),
                ("FSS 5 px (2.5 km)", "fss", {"scale": 5}),
            ):
                value = float(scores[name].sel({**at, **further}))
                low, high = scores[f"{name}_interval"].sel({**at, **further}).values
                assert cells[column] == f"{value:.2f} [{low:.2f}, {high:.2f}]"
            assert int(cells["Correct negatives"].replace("\u202f", "")) == int(scores.correct_negatives.sel(at))
            assert int(cells["Cases"]) == int(scores.cases.sel(lead_time=lead))
    header, *rows = page.tables["All values"]
    cells = dict(zip(header, rows[4], strict=True))
    here = scores.sel(lead_time=np.timedelta64(30, "m"), forecaster="persistence")
    assert float(cells["MAE, mm/h"].split(" ")[0]) == pytest.approx(float(here.mae), abs=5e-4)
    assert float(cells["MSE, (mm/h)²"].split(" ")[0]) == pytest.approx(float(here.mse), abs=5e-4)
    assert cells["Wet area"] == f"{100 * float(here.wet_area):.1f} %"
    assert float(cells["Mean observed, mm/h"]) == pytest.approx(float(here.observed_mean), abs=5e-4)


def test_the_page_needs_nothing_else(full: tuple[Page, str]) -> None:
    page, text = full
    assert not re.search(r"https?://", text)
    assert not re.search(r"url\(|@import|<link|<iframe|srcset", text)
    assert "script" not in page.tags
    assert len(text.encode()) < 3_000_000
    kinds = set()
    for image in page.images:
        kind, content = re.fullmatch(r"data:(image/[a-z+]+);base64,(.+)", str(image["src"])).groups()
        kinds.add(kind)
        assert base64.b64decode(content, validate=True)[:5] in (b"\x89PNG\r", b"<?xml")
        assert len(str(image["alt"])) > 20
    assert kinds == {"image/png", "image/svg+xml"}


def test_hostile_words_are_only_words(full: tuple[Page, str]) -> None:
    page, text = full
    assert "<script" not in text
    assert html.escape("<script>alert('x')</script>", quote=False)[:12] in text
    for words in ("<script>alert('x')</script> & \"more\"", "Data <b>", "<u>other</u>", "Rain <i>and</i> shine"):
        assert words in page.words
    assert not {"script", "b", "u", "i"} & set(page.tags)


def test_facts_notes_and_interval_are_said(full: tuple[Page, str]) -> None:
    page, text = full
    for words in ("m.safetensors", "radar/*.h5", "Trained on", INTERVAL, "12 of 60 minutes", "at or above 0.1 mm/h"):
        assert words in page.words
    assert page.words.count("Valid pixels") == 2
    assert '<html lang="en">' in text


def csi_at_half_an_hour(*values: float, width: float = 0.01) -> xr.Dataset:
    scores = make_scores()
    for name, value in zip(FORECASTERS, values, strict=True):
        scores["csi"].loc[{"forecaster": name}] = value
    scores["csi_interval"] = scores["csi"] + xr.DataArray([-width, width], dims="bound")
    return scores


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (
            csi_at_half_an_hour(0.52, 0.47, 0.55),
            "At +30 min and 0.5 mm/h: CSI 0.52 [0.51, 0.53] for stormcell against 0.47 for persistence and 0.55 for "
            "optical-flow – stormcell is better than persistence and worse than optical-flow.",
        ),
        (
            csi_at_half_an_hour(0.3, 0.4, 0.3),
            "At +30 min and 0.5 mm/h: CSI 0.30 [0.29, 0.31] for stormcell against 0.40 for persistence and 0.30 for "
            "optical-flow – stormcell is worse than persistence and level with optical-flow; "
            "optical-flow lies within that interval.",
        ),
        (
            csi_at_half_an_hour(0.5, math.nan, 0.45, width=0.1),
            "At +30 min and 0.5 mm/h: CSI 0.50 [0.40, 0.60] for stormcell against 0.45 for optical-flow – stormcell is "
            "better than optical-flow; undefined for persistence; optical-flow lies within that interval.",
        ),
        (
            csi_at_half_an_hour(math.nan, 0.4, 0.4),
            "At +30 min and 0.5 mm/h: CSI of stormcell is undefined (no such event was forecast or observed).",
        ),
    ],
    ids=["won and lost", "level", "undefined rival", "undefined"],
)
def test_the_summary_says_losses_as_plainly_as_wins(tmp_path: Path, scores: xr.Dataset, sentence: str) -> None:
    light = scores.drop_vars([name for name in scores if not str(name).startswith("csi")])
    page, _ = write(tmp_path, light.sel(threshold=[0.5]))
    assert sentence in page.words


def scores_of_an_ensemble(*others: str) -> xr.Dataset:
    """Six hours of a sharp single forecast, and of an ensemble of four, and others like it, at two lead times."""
    rng = np.random.default_rng(0)
    tally = Tally(["stormcell", *others, "steps"], (0.5, 2.0), (3, 7), 0.1, spacing_m=2000.0)
    for k in range(6):
        truth = rng.gamma(0.5, 4, (2, 24, 24)).astype(np.float32)
        many = truth * rng.uniform(0.2, 1.8, (4, 2, 24, 24)).astype(np.float32)
        fields = {"stormcell": truth, **dict.fromkeys(others, truth[None] + 0.5 * (many - truth)), "steps": many}
        tally.add(np.datetime64("2024-01-01", "ns") + k * np.timedelta64(1, "h"), truth, fields)
    leads = (np.array([5, 30]) * np.timedelta64(1, "m")).astype("timedelta64[ns]")
    return tally.scores(leads, units="mm/h")


def test_an_ensemble_has_its_diagrams(tmp_path: Path, full: tuple[Page, str]) -> None:
    scores = scores_of_an_ensemble()
    page, text = write(tmp_path, scores)
    alts = {str(image["alt"]).split(":")[0]: str(image["alt"]) for image in page.images}
    for caption in (
        "CRPS", "Relative power", "Spectrum over the observed, +30 min", "Spectrum, +5 min", "Brier skill, 2 mm/h",
        "Reliability, 0.5 mm/h, +30 min", "ROC area, 2 mm/h", "ROC, 2 mm/h, +5 min", "Ranks, +30 min",
        "FSS over width, 0.5 mm/h, +5 min",
    ):  # fmt: skip
        assert caption in alts
    at = scores.sel(lead_time=np.timedelta64(30, "m"), threshold=2.0, forecaster="steps")
    last = f"{100 * float(at.observed_frequency[9]):.0f} % when it said {100 * float(at.forecast_probability[9]):.0f} %"
    assert last in alts["Reliability, 2 mm/h, +30 min"]
    assert f"area {float(at.roc_area):.2f} [" in alts["ROC, 2 mm/h, +30 min"]
    assert f"above all {100 * float(at.rank_share[4]):.0f} %" in alts["Ranks, +30 min"]
    header, *rows = page.tables["2 mm/h or more"]
    assert rows[2][header.index("ROC area")] == "–"  # of a single forecast
    assert rows[3][header.index("ROC area")].startswith(f"{float(at.roc_area):.2f} [")
    header, *rows = page.tables["All values"]
    assert [row[header.index("Members")] for row in rows] == ["1", "4", "1", "4"]
    assert "At +30 min: CRPS 0 [0, 0] for stormcell against" in page.words
    assert "of the observed power at wavelengths of 4 to 16 km: 1.00 [1.00, 1.00] in stormcell and" in page.words
    assert len(text.encode()) < 3_000_000
    without, _ = full
    for words in ("Reliability", "ROC", "Rank", "Power spectra", "CRPS"):
        assert words in page.words
        assert words not in without.words


def test_an_ensemble_is_held_against_ensembles(tmp_path: Path) -> None:
    page, _ = write(tmp_path, scores_of_an_ensemble("ensemble"))
    assert "for steps – ensemble is better than steps" in page.words.split("At +30 min: CRPS")[1][:120]


def test_undefined_prints_as_a_dash_and_missing_intervals_are_explained(tmp_path: Path) -> None:
    scores = make_scores(intervals=False, thresholds=(0.5,), scales=(1,))
    scores["csi"][:] = np.nan
    scores["frequency_bias"][0] = np.inf
    page, text = write(tmp_path, scores)
    assert TOO_FEW in page.words
    header, *rows = page.tables["0.5 mm/h or more"]
    assert {row[header.index("CSI")] for row in rows} == {"–"}
    assert rows[0][header.index("Frequency bias")] == "∞"
    assert "[" not in page.words.split("All scores")[-1]
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()


def test_a_plain_unit_without_scales(tmp_path: Path) -> None:
    scores = make_scores(units="K", thresholds=(280.0,), scales=(), forecasters=("convlstm",))
    scores["mean_value"] += 280
    page, _ = write(tmp_path, scores)
    assert "At +30 min and 280 K: CSI" in page.words
    assert "nothing was verified beside it" in page.words
    assert "FSS" not in page.words
    assert "MSE, K²" in page.tables["All values"][0]
    assert re.fullmatch(r"280\.\d", page.tables["All values"][1][page.tables["All values"][0].index("Mean value, K")])


def test_scores_without_thresholds_are_summed_up_by_their_error(tmp_path: Path) -> None:
    scores = make_scores()[["mae", "mae_interval", "cases"]]
    scores["mae"].loc[{"forecaster": "stormcell"}] = 0.1
    page, _ = write(tmp_path, scores)
    assert "At +30 min: MAE 0.100" in page.words
    assert "stormcell is better than persistence and optical-flow" in page.words


def test_scores_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least one lead_time\. Received: "):
        write(tmp_path, make_scores().isel(lead_time=[]))


def test_the_summary_goes_on_to_heavier_rain(tmp_path: Path) -> None:
    page, _ = write(tmp_path, make_scores(thresholds=(0.5, 2.0, 5.0, 10.0)))
    said = [threshold for threshold in ("0.5", "2", "5", "10") if f"and {threshold} mm/h: CSI" in page.words]
    assert said == ["0.5", "2", "5"]
