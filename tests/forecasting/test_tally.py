"""Scores against pysteps and `scores` on complete fields, against numbers worked by hand; masks, blocks and intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr

from stormcell.errors import InputError
from stormcell.forecasting.tally import Tally, assign_blocks, fss_parts, scores_to_json

LEADS = np.array([5, 10], dtype="timedelta64[m]").astype("timedelta64[ns]")


def fields(seed: int, shape: tuple[int, ...] = (2, 40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.4, 4, size=shape).astype(np.float32)


def tally_of(cases: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]], **how: object) -> xr.Dataset:
    names = list(cases[0][1])
    tally = Tally(names, (0.5, 5.0), (5, 11), 0.1)
    for k, (truth, fcsts) in enumerate(cases):
        tally.add(np.datetime64("2024-01-01T00:00", "ns") + k * np.timedelta64(20, "m"), truth, fcsts)
    return tally.scores(LEADS, units="mm/h")


# --- formulas ---


def test_a_contingency_table_worked_by_hand() -> None:
    truth = np.array([[[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]]], dtype=np.float32)
    fcst = np.array([[[1, 1, 0, 1, 0, 0, 0, 0, 0, 0]]], dtype=np.float32)
    tally = Tally(["model"], (0.5,), (1,), 0.5)
    tally.add(np.datetime64("2024-01-01", "ns"), truth, {"model": fcst})
    scores = tally.scores(LEADS[:1], units="mm/h").squeeze()
    counts = [int(scores[k]) for k in ("hits", "misses", "false_alarms", "correct_negatives")]
    assert counts == [2, 1, 1, 6]
    assert float(scores.csi) == pytest.approx(2 / 4)
    assert float(scores.pod) == pytest.approx(2 / 3)
    assert float(scores.far) == pytest.approx(1 / 3)
    assert float(scores.frequency_bias) == pytest.approx(1)
    assert float(scores.mse) == pytest.approx(0.2)
    assert float(scores.mae) == pytest.approx(0.2)
    assert float(scores.wet_area) == float(scores.observed_wet_area) == pytest.approx(0.3)
    assert float(scores.mean_value) == pytest.approx(0.3)
    assert float(scores.valid_share) == 1


def test_categorical_and_continuous_scores_agree_with_pysteps() -> None:
    pytest.importorskip("pysteps", reason="the cross-check needs pysteps")
    from pysteps.verification.detcatscores import det_cat_fct
    from pysteps.verification.detcontscores import det_cont_fct

    truth, fcst = fields(0), fields(1) * 0.5 + fields(0) * 0.5
    scores = tally_of([(truth, {"model": fcst})]).sel(forecaster="model")
    for lead in range(2):
        at = scores.isel(lead_time=lead)
        for threshold in (0.5, 5.0):
            # pysteps counts values above a threshold, we those at or above it: no value lies on it here
            theirs = det_cat_fct(fcst[lead], truth[lead], threshold, ["CSI", "POD", "FAR", "BIAS"])
            for ours, name in (("csi", "CSI"), ("pod", "POD"), ("far", "FAR"), ("frequency_bias", "BIAS")):
                assert float(at[ours].sel(threshold=threshold)) == pytest.approx(float(theirs[name]), rel=1e-9)
        theirs = det_cont_fct(fcst[lead].astype(float), truth[lead].astype(float), ["MSE", "MAE", "corr_p"])
        for ours, name in (("mse", "MSE"), ("mae", "MAE"), ("correlation", "corr_p")):
            assert float(at[ours]) == pytest.approx(float(theirs[name]), rel=1e-6)


def test_pooled_scores_agree_with_the_scores_library() -> None:
    """Pooled over cases means: as if all pixels of all cases were one field."""
    from scores.categorical import ThresholdEventOperator
    from scores.continuous import mae, mse
    from scores.continuous.correlation import pearsonr

    cases = [(fields(k), {"model": fields(k + 50) + fields(k)}) for k in range(3)]
    ours = tally_of(cases).sel(forecaster="model").isel(lead_time=1)
    truth = xr.DataArray(np.stack([t[1] for t, _ in cases]).astype(float), dims=("case", "y", "x"))
    fcst = xr.DataArray(np.stack([f["model"][1] for _, f in cases]).astype(float), dims=("case", "y", "x"))
    assert float(ours.mse) == pytest.approx(float(mse(fcst, truth)), rel=1e-9)
    assert float(ours.mae) == pytest.approx(float(mae(fcst, truth)), rel=1e-9)
    assert float(ours.correlation) == pytest.approx(float(pearsonr(fcst, truth)), rel=1e-9)
    manager = ThresholdEventOperator().make_contingency_manager(fcst, truth, event_threshold=5.0).transform()
    assert float(ours.csi.sel(threshold=5)) == pytest.approx(float(manager.critical_success_index()), rel=1e-9)


@pytest.mark.parametrize("scale", [5, 11])
def test_fss_agrees_with_pysteps_and_scores_away_from_the_edges(scale: int) -> None:
    """With a dry margin as wide as the window, edges do not matter, and all three definitions are one."""
    pytest.importorskip("pysteps", reason="the cross-check needs pysteps")
    from pysteps.verification.spatialscores import fss
    from scores.spatial import fss_2d_single_field

    truth, fcst = (np.pad(fields(seed, (40, 50)), scale) for seed in (0, 1))
    numerator, denominator = fss_parts(fcst, truth, np.ones(truth.shape, dtype=bool), threshold=2.0, scale=scale)
    ours = 1 - numerator / denominator
    assert ours == pytest.approx(fss(fcst, truth, 2.0, scale), rel=1e-4)
    theirs = fss_2d_single_field(fcst, truth, event_threshold=2.0, window_size=(scale, scale), zero_padding=False)
    assert ours == pytest.approx(float(theirs), rel=1e-4)


def test_fss_worked_by_hand() -> None:
    """One pixel one column off: at scale 1 nothing agrees, at scale 3 the fractions do in part."""
    truth, fcst = np.zeros((2, 9, 9), dtype=np.float32)
    truth[4, 4] = fcst[4, 5] = 1
    everywhere = np.ones((9, 9), dtype=bool)
    assert fss_parts(fcst, truth, everywhere, threshold=0.5, scale=1) == pytest.approx((2, 2))
    # 9 windows see either pixel, 6 both: 6 of 12 windows differ, by 1/9
    assert fss_parts(fcst, truth, everywhere, threshold=0.5, scale=3) == pytest.approx((6 / 81, 18 / 81))


def test_windows_with_under_half_of_their_pixels_valid_are_left_out() -> None:
    truth, fcst = fields(0, (30, 30)), fields(1, (30, 30))
    valid = np.ones((30, 30), dtype=bool)
    valid[:, 15:] = False
    inside = fss_parts(fcst, truth, valid, threshold=2.0, scale=5)
    changed = fcst.copy()
    changed[:, 15:] = 99  # what is not valid has no say
    assert fss_parts(changed, truth, valid, threshold=2.0, scale=5) == inside
    everything = fss_parts(fcst, truth, np.ones((30, 30), dtype=bool), threshold=2.0, scale=5)
    assert inside[1] < 0.7 * everything[1]


# --- ensembles and spectra ---


def pair_of_cases(count: int = 2) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Truth, a single forecast and an ensemble of six."""
    rng = np.random.default_rng(0)
    cases = []
    for k in range(count):
        truth = fields(k)
        many = truth * rng.gamma(4, 1 / 4, (6, *truth.shape)).astype(np.float32) + fields(k + 50, (6, *truth.shape)) / 4
        cases.append((truth, {"one": fields(k + 99) + truth, "many": many}))
    return cases


def test_an_ensemble_is_scored_by_its_mean_and_as_a_whole() -> None:
    from stormcell.forecasting.probability import brier_sum, crps_sum, event_table, roc_area

    cases = pair_of_cases()
    scores = tally_of(cases)
    means = tally_of([(truth, {k: v.mean(axis=0) if v.ndim == 4 else v for k, v in f.items()}) for truth, f in cases])
    for name in ("csi", "mse", "mae", "fss", "wet_area", "correlation"):
        np.testing.assert_allclose(scores[name], means[name], rtol=1e-5)
    at = scores.isel(lead_time=1)
    obs = np.stack([truth[1] for truth, _ in cases]).ravel().astype(float)
    many = np.stack([f["many"][:, 1] for _, f in cases], axis=1).reshape(6, -1).astype(float)
    assert float(at.crps.sel(forecaster="many")) == pytest.approx(crps_sum(many, obs) / obs.size, rel=1e-9)
    np.testing.assert_allclose(scores.crps.sel(forecaster="one"), scores.mae.sel(forecaster="one"))
    assert (scores.crps.sel(forecaster="many") < scores.mae.sel(forecaster="many")).all()
    table = event_table(many >= 5, obs >= 5)
    one, several = (at.sel(threshold=5.0, forecaster=name) for name in ("one", "many"))
    assert float(several.brier) == pytest.approx(brier_sum(*table) / obs.size)
    rate = (obs >= 5).mean()
    assert float(several.brier_skill) == pytest.approx(1 - float(several.brier) / (rate * (1 - rate)))
    assert float(one.brier) == pytest.approx(float(one.misses + one.false_alarms) / obs.size)
    assert float(several.roc_area) == pytest.approx(float(roc_area(*table)))
    assert several.forecasts.sum() == several.forecasts.values[[0, 1, 3, 5, 6, 8, 9]].sum() == obs.size
    assert float(several.rank_share.sum()) == pytest.approx(1)
    for name in ("roc_area", "forecasts", "rank_share", "roc_pod"):
        assert np.isnan(one[name]).all()
    assert scores.members.values.tolist() == [1, 6]


def test_ensembles_have_intervals_and_a_band_from_five_blocks_on() -> None:
    few, enough = tally_of(pair_of_cases(9)), tally_of(pair_of_cases(18))
    assert np.isnan(few.consistency).all()
    assert np.isfinite(enough.consistency.sel(forecaster="many")).any()
    for name in ("crps", "brier", "brier_skill", "roc_area"):
        assert np.isnan(few[f"{name}_interval"]).all()
        value, bounds = (enough[key].sel(forecaster="many") for key in (name, f"{name}_interval"))
        assert ((bounds.sel(bound="low") < value) & (value < bounds.sel(bound="high"))).all()
    xr.testing.assert_identical(enough, tally_of(pair_of_cases(18)))  # ties and draws are seeded


def test_ensembles_of_several_sizes_and_their_json() -> None:
    (truth, fcsts), *_ = pair_of_cases(1)
    scores = tally_of([(truth, {**fcsts, "few": fcsts["many"][:2]})])
    assert int(scores.rank_share.sel(forecaster="few").notnull().sum(dim="rank")[0]) == 3
    rows = json.loads(scores_to_json(scores))["scores"]
    assert [len(row["rank_histogram"]) for row in rows if "rank_histogram" in row] == [7, 7, 3, 3]
    entry = rows[2]["thresholds"][1]
    assert rows[2]["forecaster"] == "many"
    assert entry["brier"] == pytest.approx(float(scores.brier.sel(forecaster="many").values[0, 1]))
    assert [len(row["thresholds"][0]["roc"]) for row in rows[2:]] == [8, 8, 4, 4]
    assert len(entry["reliability"]) == 10
    assert entry["reliability"][1]["consistency"] == [None, None]
    assert "reliability" not in rows[0]["thresholds"][0]
    with pytest.raises(InputError, match="many has 6 members in one case and 5 in another"):
        tally_of([(truth, fcsts), (truth, {**fcsts, "many": fcsts["many"][:5]})])


def test_one_member_that_is_missing_leaves_the_pixel_out() -> None:
    (truth, fcsts), *_ = pair_of_cases(1)
    whole = tally_of([(truth, fcsts)])
    fcsts["many"][3, :, :10] = np.nan
    assert (tally_of([(truth, fcsts)]).valid_share == 0.75).all()
    assert (whole.valid_share == 1).all()


def test_relative_power_is_that_of_short_waves_pooled() -> None:
    from scipy.ndimage import gaussian_filter

    truth = [fields(k, (1, 48, 48)) for k in range(2)]
    tally = Tally(["sharp", "blurred"], (0.5,), (5,), 0.1, spacing_m=2000.0)
    for k, one in enumerate(truth):
        blurred = gaussian_filter(one, (0, 1.5, 1.5))
        tally.add(np.datetime64("2024-01-01", "ns") + k, one, {"sharp": one, "blurred": blurred})
    scores = tally.scores(LEADS[:1], units="mm/h").isel(lead_time=0)
    assert float(scores.relative_power.sel(forecaster="sharp")) == 1
    assert float(scores.relative_power.sel(forecaster="blurred")) < 0.5
    ratio = scores.power.sel(forecaster="blurred") / scores.observed_power
    assert float(ratio[0]) < float(ratio[-1])
    np.testing.assert_allclose(scores.wavelength_km, 2 * scores.wavelength)
    spectrum = json.loads(scores_to_json(scores.expand_dims("lead_time")))["scores"][0]["spectrum"]
    assert spectrum[0]["power"] == spectrum[0]["observed_power"] == pytest.approx(float(scores.observed_power[0]))
    nowhere = Tally(["sharp"], (0.5,), (5,), 0.1)
    nowhere.add(np.datetime64("2024-01-01", "ns"), truth[0], {"sharp": truth[0]})
    assert "relative_power" not in nowhere.scores(LEADS[:1], units="mm/h")


# --- masks, pooling, intervals ---


def test_one_mask_for_all_forecasters() -> None:
    """Where any compared forecast or the truth is missing, no forecaster is scored."""
    truth, a, b = fields(0), fields(1), fields(2)
    plain = tally_of([(truth, {"a": a, "b": b})])
    assert (plain.valid_share == 1).all()
    truth[:, :10], b[:, :, :10] = np.nan, np.nan
    masked = tally_of([(truth, {"a": a, "b": b})])
    np.testing.assert_allclose(masked.valid_share, 30 * 40 / (40 * 50))
    a2 = a.copy()
    a2[:, :10], a2[:, :, :10] = 77, 77
    again = tally_of([(truth, {"a": a2, "b": b})])
    for name in ("csi", "mse", "fss", "hits", "wet_area", "mean_value"):
        np.testing.assert_array_equal(again[name], masked[name])
    total = sum(masked[k] for k in ("hits", "misses", "false_alarms", "correct_negatives"))
    assert (total == 30 * 40).all()


def test_no_events_make_a_score_undefined_not_zero() -> None:
    dry = np.zeros((2, 10, 10), dtype=np.float32)
    scores = tally_of([(dry, {"a": dry})])
    for name in ("csi", "pod", "far", "frequency_bias", "correlation", "fss"):
        assert np.isnan(scores[name]).all()
    assert (scores.mse == 0).all()
    assert (scores.power == 0).all()
    assert np.isnan(scores.brier_skill).all()
    json.loads(scores_to_json(scores.assign_attrs(left_out_cases=0)))


def test_a_value_on_the_threshold_is_an_event_in_every_score() -> None:
    """0.7 as float32 is less than 0.7 as float64: radar data are full of such values."""
    field = np.where(np.arange(100).reshape(1, 10, 10) % 3 == 0, np.float32(0.7), np.float32(0))
    tally = Tally(["a"], (0.7,), (1,), 0.1)
    tally.add(np.datetime64("2024-01-01", "ns"), field, {"a": field})
    scores = tally.scores(LEADS[:1], units="mm/h").squeeze()
    assert int(scores.hits) == 34
    assert float(scores.csi) == float(scores.fss) == 1


def test_blocks_hold_an_hour_or_more() -> None:
    start = np.datetime64("2024-01-01T00:10", "ns")
    every = [start + k * np.timedelta64(5, "m") for k in range(12 * 3 + 4)]
    blocks = assign_blocks(every)
    assert np.bincount(blocks).tolist() == [12, 12, 16]  # the last four are no hour of their own
    far = [*every[:12], *(t + np.timedelta64(9, "h") for t in every[:3])]
    assert np.bincount(assign_blocks(far)).tolist() == [12, 3]
    days = [t + d * np.timedelta64(24, "h") for d in range(4) for t in every[:14]]
    assert np.bincount(assign_blocks(days)).tolist() == [14] * 4  # two cases are left over at the end of each day
    assert assign_blocks([start] * 5).tolist() == [0] * 5  # many areas of one time are one block


def test_intervals_need_five_blocks() -> None:
    def cases(count: int) -> xr.Dataset:
        return tally_of([(fields(k), {"a": fields(k) * 0.7 + fields(k + 99) * 0.3}) for k in range(count)])

    few = cases(12)  # every 20 minutes: four hours
    assert few.attrs["blocks"] == 4
    assert np.isnan(few.csi_interval).all()
    assert few.attrs["interval"] == "too few blocks for an interval (4; 5 are needed)"
    enough = cases(24)
    assert enough.attrs["blocks"] == 8
    assert "bootstrap over 8 blocks of 60 minutes" in enough.attrs["interval"]
    for name in ("csi", "mse", "fss", "correlation"):
        low, high = enough[f"{name}_interval"].sel(bound="low"), enough[f"{name}_interval"].sel(bound="high")
        assert ((low < enough[name]) & (enough[name] < high)).all()
        assert (high - low < 0.2 * abs(enough[name])).all()
    xr.testing.assert_identical(enough, cases(24))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Cases drawn from one known law: the interval of the mean error must hold its expectation in most of 60 trials."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        tally = Tally(["a"], (0.5,), (1,), 0.1)
        for k in range(20):
            error = np.full((1, 4, 4), rng.normal(1.0, 0.3), dtype=np.float32)
            time = np.datetime64("2024-01-01", "ns") + k * np.timedelta64(1, "h")
            tally.add(time, np.zeros((1, 4, 4), dtype=np.float32), {"a": error})
        low, high = tally.scores(LEADS[:1], units="mm/h").mae_interval.squeeze().values
        held += low <= 1.0 <= high
    assert 48 <= held <= 60


# --- several processes ---


def test_tallies_of_shares_merge_to_that_of_all_cases() -> None:
    """Counts, ranks and the order of cases are the same; sums but for rounding."""
    cases = [(fields(k), {"model": fields(k + 50), "ensemble": fields(k + 90, (3, 2, 40, 50))}) for k in range(7)]
    for truth, _ in cases:
        truth[truth < 0.5] = 0  # drawn by lot among ranks
    tallies = [Tally(["model", "ensemble"], (0.5, 5.0), (5,), 0.1) for _ in range(4)]
    for k, (truth, fcsts) in enumerate(cases):
        for tally in (tallies[0], tallies[1 + k % 2]):  # the last one has none
            tally.add(np.datetime64("2024-01-01T00:00", "ns") + k * np.timedelta64(20, "m"), truth, fcsts)
    one = tallies[0].scores(LEADS, units="mm/h")
    two = tallies[1].merged(tallies[2:]).scores(LEADS, units="mm/h")
    xr.testing.assert_allclose(two, one, rtol=1e-12)
    for name in ("hits", "misses", "false_alarms", "correct_negatives", "rank_share", "forecasts"):
        np.testing.assert_array_equal(two[name], one[name])
    assert two.attrs == one.attrs
    assert len(tallies[1].times) == 4
    other = Tally(["model", "ensemble"], (0.5, 5.0), (5,), 0.1)
    other.add(
        np.datetime64("2024-01-02", "ns"), cases[0][0], {"model": fields(1), "ensemble": fields(2, (4, 2, 40, 50))}
    )
    with pytest.raises(InputError, match="ensemble has 3 members in one case and 4 in another"):
        tallies[1].merged([other])
