"""The benchmarks' page is what its newest result says, and no speed is printed while an engine is wrong."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import agreement, cases, choice, gpu, run, scaling, store, table
from benchmarks.cases import CASES, GROWTH, QUICK, SAME, arrays, from_json, parameter_count
from benchmarks.peers import GROWTH_PEERS, PEERS, NotHere, ours
from benchmarks.worker import environment, timed

from stormcell import paper_model

FAST = {"n": 5, "q1_s": 0.009, "median_s": 0.01, "q3_s": 0.0111, "slow": False}
SLOW = {"n": 1, "q1_s": 40.0, "median_s": 40.0, "q3_s": 40.0, "slow": True}


def entry(title: str, *, ours: bool = False, complete: bool = True, **values: Any) -> dict[str, Any]:
    return {"title": title, "ours": ours, "complete": complete, "status": "ok", **values}


@pytest.fixture
def result() -> dict[str, Any]:
    """Made up: ours twice as fast forward as the best peer, and slower in training."""
    half = {**FAST, "median_s": 0.005}
    peers = {
        "stormcell": entry("Stormcell (auto)", ours=True, engine="bptt", forward=half, train=SLOW, peak_mb=300.0),
        "torch": entry("torch loop", forward=FAST, train=FAST, peak_mb=600.4),
        "flax": entry("Flax", forward={**FAST, "median_s": 0.02}, train=SLOW, peak_mb=1200.0),
        "keras-jax": {**entry("Keras on JAX"), "status": "not installed", "why": "jax"},
        "floor": entry("convolutions alone", complete=False, forward={**FAST, "median_s": 0.001}, train=FAST),
    }
    return {
        "date": "2026-11-24T10:00:00+00:00",
        "commit": "0123456789abcdef",
        "dirty": False,
        "quick": False,
        "busy": False,
        "threads": 2,
        "machine": {"cpu": "A CPU", "cores": 2, "system": "Linux x86_64"},
        "versions": {"Python": "3.11.1", "torch": "2.13.0", "jax": None},
        "plots": ["r.png", "r.svg"],
        "cases": {"3x3": {"title": "8 × 10 steps", "peers": peers}},
        "growth": {},
    }


def test_the_page_is_what_the_newest_result_gives() -> None:
    """Also where there is no result yet: then the page says so."""
    assert table.main(["--check"]) == 0
    page = (table.FOLDER / "README.md").read_text(encoding="utf-8")
    assert table.markdown(table.newest()) in page


def test_a_page_that_is_out_of_date_is_found_and_mended(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.BEGIN}\n\nold\n\n{table.END}\nafter\n", encoding="utf-8")
    results = tmp_path / "results"
    results.mkdir()
    assert table.main([], folder=tmp_path) == 0
    assert "No result has been recorded yet." in page.read_text(encoding="utf-8")
    for name, changes in {
        "a": {},
        "b": {"date": "2026-11-20T10:00:00+00:00", "commit": "older"},
        "c": {"date": "2026-11-30T10:00:00+00:00", "commit": "quick", "quick": True},
    }.items():
        (results / f"{name}.json").write_text(json.dumps({**result, **changes}), encoding="utf-8")
    assert table.main(["--check"], folder=tmp_path) == 1
    assert "out of date" in capsys.readouterr().err
    assert table.main([], folder=tmp_path) == 0
    assert table.main(["--check"], folder=tmp_path) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "commit 0123456789." in text
    with pytest.raises(ValueError, match="lacks one of its comments"):
        table.insert("no comments", "text")


def test_ratios_are_against_the_fastest_complete_peer_that_is_not_ours(result: dict[str, Any]) -> None:
    peers = result["cases"]["3x3"]["peers"]
    assert table.best(peers, "forward") == table.best(peers, "train") == table.best(peers, "peak_mb") == "torch"
    assert table.speeds(peers, "forward") == {"stormcell": 2.0, "torch": 1.0, "flax": 0.5, "floor": 10.0}
    assert table.speeds({"stormcell": peers["stormcell"]}, "forward") == {}


def test_the_tables_show_losses_and_those_that_are_missing(result: dict[str, Any]) -> None:
    (made,) = table.tables(result)
    assert made.head == ["", "forward, ms", "speed", "training step, ms", "speed", "peak, MiB"]
    rows = {row[0]: row[1:] for row in made.rows}
    assert rows["Stormcell (auto) → bptt"] == ["5.00 (9.00–11.1)", "2.00×", "40,000†", "0.00×", "300"]
    assert rows["torch loop"] == ["10.0 (9.00–11.1)", "1.00×", "10.0 (9.00–11.1)", "1.00×", "600"]
    assert rows["Keras on JAX"] == ["not installed: jax", "", "", "", ""]
    assert rows["convolutions alone"][-1] == "–"
    both = table.overview(result).rows
    assert [row[4] for row in both] == ["2.00×", "0.00×"]
    assert [row[5] for row in both] == ["–", "0.50× of torch loop"]
    text = table.markdown(result)
    assert "† A run takes more than 20 s and was made once." in text
    assert "![r](results/r.svg)" in text
    assert "jax" not in text.split("\n\n")[0]
    assert "Other programs were running" in table.markdown({**result, "busy": True})


def test_a_summary_is_median_and_quartiles() -> None:
    assert table.summary([1.0, 2.0, 3.0, 4.0, 100.0]) == {
        "n": 5, "median_s": 3.0, "q1_s": 2.0, "q3_s": 4.0, "slow": False
    }  # fmt: skip
    assert table.summary([30.0]) == {"n": 1, "median_s": 30.0, "q1_s": 30.0, "q3_s": 30.0, "slow": True}


def test_a_turn_is_at_least_one_run_and_a_short_run_is_warmed_up() -> None:
    calls: list[None] = []
    assert len(timed(lambda: calls.append(None), 0.0)) == len(calls) == 1
    calls.clear()
    durations = timed(lambda: calls.append(None), 0.001)
    assert len(calls) == len(durations) + 1


def test_our_engines_agree_on_a_small_case() -> None:
    lines = agreement.check([QUICK], names=["auto"])
    assert [line.engine for line in lines] == ["auto"]
    assert all(line.agrees for line in lines), lines


@pytest.mark.parametrize("kind", ["wrong", "nan", "raises"])
def test_no_speed_is_measured_while_an_engine_is_wrong(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faked(case: Any, engine: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        found = agreement.compute(case, "reference", dtype)
        if engine == "bptt":
            if kind == "raises":
                raise RuntimeError("out of order")
            found["d_weight_hh_l0"] = found["d_weight_hh_l0"] * (1 + 1e-4 if kind == "wrong" else float("nan"))
        return found

    def check(cases: Any, *, names: Any) -> list[agreement.Line]:
        return real([QUICK], names=["bptt", "auto"], compute=faked)

    def measure(*_: object) -> None:
        raise AssertionError("measured")

    real = agreement.check
    monkeypatch.setattr(agreement, "check", check)
    monkeypatch.setattr(run.Bench, "check_peers", measure)
    monkeypatch.setattr(run.Bench, "measure", measure)
    monkeypatch.setattr(run, "other_load", lambda: None)
    for name in environment(2):
        monkeypatch.setenv(name, "1")  # run.main sets them for good: put back after the test
    assert run.main(["--quick"]) == 1
    said = capsys.readouterr().err
    expected = "RuntimeError: out of order" if kind == "raises" else "d_weight_hh_l0 is off by"
    assert f"disagrees: quick: bptt: {expected}" in said
    assert "No speed is measured while numbers disagree." in said
    assert "auto" not in said


def test_an_engine_that_refuses_a_case_is_left_out() -> None:
    def faked(case: Any, engine: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        if engine == "winograd":
            raise ValueError('engine="winograd" cannot compute this: the kernel is even')
        return agreement.compute(case, "reference", dtype)

    assert [line.engine for line in agreement.check([QUICK], names=["winograd", "auto"], compute=faked)] == ["auto"]


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_the_torch_loop_computes_our_numbers(case: Any) -> None:
    from benchmarks.peers import torch_loop

    for variant in ("eager", "channels_last"):
        found = torch_loop.build(case, variant).numbers()
        lines = agreement.check_peer("torch", case, found, parameter_count(arrays(case)))
        assert len(lines) == (1 if case.streaming else 2)
        assert all(line.agrees for line in lines), lines
    missing = {**found, "gradients": np.array(3)}
    assert not all(line.agrees for line in agreement.check_peer("torch", case, missing, parameter_count(arrays(case))))


@pytest.mark.parametrize("variant", ["", "channels_last"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_floor_runs_on_every_kind_of_case(variant: str, precision: str) -> None:
    """In the precision that is asked for, without a cast, and in one memory format throughout."""
    from benchmarks.peers import floor

    lies = torch.channels_last if variant else torch.contiguous_format
    for case in SAME:
        made = floor.build(case, variant, "cpu", precision)
        given = [made.output, made.read, made.d_y] if case.future else []
        for layer in made.layers:
            given += [layer.hh, layer.h[-1], layer.h.flatten(0, 1), layer.d_z[-1]]
            given += [] if layer.ih is None else [layer.ih, layer.x]
        assert {value.dtype for value in given} == {getattr(torch, precision)}
        assert all(value.is_contiguous(memory_format=lies) for value in given)
        made.forward()
        made.training_step()
    with pytest.raises(NotHere, match="CUDA graphs need a GPU"):
        floor.build(QUICK, f"{variant}+graph")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--peers", "torch", "caffe"], "benchmarks: unknown peer 'caffe': choose from stormcell, "),
        (["--cases", "7x7"], "benchmarks: unknown case '7x7': choose from 5x5, "),
        (["--threads", "0"], "benchmarks: --threads, --seconds and --patience must be positive."),
        (["--out", "../x"], "benchmarks: --out is a name without folders, not '../x'."),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(sentence)
    assert said.err.count("\n") == 1


def test_a_case_survives_json_and_the_net_is_the_paper_s() -> None:
    for case in (*CASES.values(), *(case for series in GROWTH.values() for case in series)):
        assert from_json(json.loads(json.dumps(case._asdict()))) == case
    case = CASES["paper"]._replace(batch=1, steps=1, future=1)
    net = ours.module(case, arrays(case), engine="reference")
    published = paper_model("convlstm-5x5-128-64-64")
    peepholes = sum(p.numel() for name, p in published.named_parameters() if "weight_ch" in name)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in published.parameters()) - peepholes


def test_every_peer_stands_on_the_page() -> None:
    page = (table.FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(GROWTH_PEERS) <= set(PEERS)
    for name in PEERS:
        assert f"`{name}`" in page


def test_the_table_of_small_layers_is_what_its_result_gives() -> None:
    result = json.loads(choice.RESULT.read_text(encoding="utf-8"))
    page = choice.PAGE.read_text(encoding="utf-8")
    assert choice.markdown(result) in page
    assert table.insert(page, choice.markdown(result)) == page


def test_auto_takes_the_fastest_engine_or_one_that_is_nearly_as_fast() -> None:
    """By the recorded times: at most half as long again where times are of a few milliseconds, which jitter."""
    for row in json.loads(choice.RESULT.read_text(encoding="utf-8"))["rows"]:
        for kind in ("forward", "train"):
            fastest = min(row[kind].values())
            assert row[kind][row["chosen"][kind]] <= 1.25 * fastest + 1.5, row


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The GPU's benchmark, quickly and without one; what it sets for its process is put back."""
    monkeypatch.setattr(cases, "keep_arrays", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for name in ("KERAS_BACKEND", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, {"KERAS_BACKEND": "torch"}.get(name, "false"))
    monkeypatch.setattr(gpu, "FEWEST_RUNS", 2)
    return ["--device", "cpu", "--quick", "--seconds", "0.001"]


EAGER = [  # without Triton, whose interpreter would take a minute
    peer.name
    for peer in gpu.PEERS
    if peer.module in ("ours", "floor", "torch_loop") and not peer.turn and "triton" not in peer.name
]


def test_the_benchmark_of_gpus_runs_without_one(
    on_cpu: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "gpu.json"
    assert gpu.main([*on_cpu, "--precisions", "float32", "bfloat16", "--out", str(made), "--peers", *EAGER]) == gpu.DONE
    found = json.loads(made.read_text(encoding="utf-8"))["cases"]["quick"]
    for precision in ("float32", "bfloat16"):
        rows = found[precision]
        assert set(rows) == {*EAGER, "torch loop, again"}
        reasons = {name: row["why"] for name, row in rows.items() if "why" in row}
        assert set(reasons) == {name for name in rows if "graph" in name} | {"stormcell, torch.compile"}
        assert set(reasons.values()) == {"CUDA graphs need a GPU"}
        for row in (row for row in rows.values() if "why" not in row):
            for kind in ("forward", "train"):
                assert 0 < row[kind]["q1_ms"] <= row[kind]["median_ms"] <= row[kind]["q3_ms"]
                assert row[kind]["pipelined_ms"] > 0
    assert found["float32"]["stormcell (auto)"]["engine"] != "reference"
    assert found["bfloat16"]["torch loop"]["errors"]["y"] > 100 * found["float32"]["torch loop"]["errors"]["y"]
    said = capsys.readouterr().out
    assert "stormcell (auto), train: " in said
    assert "as fast as torch loop" in said


def test_the_benchmark_of_gpus_stops_in_time_and_goes_on(on_cpu: list[str], tmp_path: Path) -> None:
    made = tmp_path / "gpu.json"
    small = [*on_cpu, "--precisions", "float32", "--out", str(made), "--peers", "torch loop", "stormcell, bptt"]

    def rows() -> dict[str, Any]:
        return json.loads(made.read_text(encoding="utf-8"))["cases"]["quick"]["float32"]

    assert gpu.main([*small, "--limit", "0"]) == gpu.DONE
    assert set(rows()) == {"torch loop", "stormcell, bptt", "torch loop, again"}
    assert all(row == {"why": "no time left"} for row in rows().values())
    result = json.loads(made.read_text(encoding="utf-8"))
    result["cases"]["quick"]["float32"]["stormcell, bptt"] = {"why": gpu.UNFINISHED}  # as a crash leaves it
    made.write_text(json.dumps(result), encoding="utf-8")
    assert gpu.main([*small, "--resume"]) == gpu.DONE
    assert rows()["stormcell, bptt"] == {"why": gpu.UNFINISHED}
    assert rows()["torch loop"]["train"]["n"] >= 2


def test_all_that_is_measured_on_a_gpu_is_kept_at_once(
    on_cpu: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "gpu.json"
    seen: list[dict[str, Any]] = []

    def measure(peer: gpu.Peer, *_: object) -> dict[str, Any]:
        seen.append(json.loads(made.read_text(encoding="utf-8"))["cases"]["quick"]["tf32"])
        return {"why": f"{peer.name} was here", "disagrees": peer.name == "torch loop"}

    monkeypatch.setattr(gpu, "measure", measure)
    names = ["stormcell, bptt", "torch loop", "torch.compile, max-autotune"]
    assert gpu.main([*on_cpu, "--precisions", "tf32", "--out", str(made), "--peers", *names]) == gpu.WRONG
    order = ["torch loop", "stormcell, bptt", "torch loop, again", "torch.compile, max-autotune", "torch loop, last"]
    for count, rows in enumerate(seen):
        assert list(rows) == order[: count + 1]
        assert [row["why"] for row in rows.values()] == [
            *(f"{name} was here" for name in order[:count]),
            gpu.UNFINISHED,
        ]


def test_a_benchmark_that_crashes_is_started_again_for_the_rest(tmp_path: Path) -> None:
    made, script = tmp_path / "gpu.json", tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "made = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "before = made.read_text() if made.exists() else ''\n"
        "made.write_text(before + ('again' if '--resume' in sys.argv else 'first'))\n"
        "os._exit(3) if len(before) < 10 else sys.exit(1)\n",
        encoding="utf-8",
    )
    assert gpu.supervise([sys.executable, str(script)], made, time.monotonic() + 60) == 1
    assert made.read_text(encoding="utf-8") == "firstagainagain"
    script.write_text("import os\nos._exit(3)\n", encoding="utf-8")
    assert gpu.supervise([sys.executable, str(script)], made, time.monotonic() + 60) == 3


def test_ratios_on_a_gpu_are_to_the_fastest_peer_the_lowest_floor_and_the_loop_s_memory() -> None:
    def row(forward: float, train: float, peak: float | None = None) -> dict[str, Any]:
        times = {"forward": forward, "train": train}
        return {
            kind: {"median_ms": value, "pipelined_ms": value / 2, "peak_mib": peak, "held_mib": peak}
            for kind, value in times.items()
        }

    rows = {
        "stormcell (auto)": row(2.0, 4.0, 50.0),
        "stormcell, triton": {"why": "no"},
        "torch loop": row(6.0, 5.0, 100.0),
        "Flax": row(3.0, 10.0),
        "torch loop, again": row(1.0, 1.0, 100.0),
        "convolutions alone": row(1.6, 2.0),
        "convolutions alone, channels_last": row(1.0, 3.0),
    }
    memory = {"peak_mib": 0.5, "held_mib": 0.5}
    assert gpu.ratios(rows) == {
        "stormcell (auto)": {
            "forward": {
                "peer": "Flax", "over_peer": 1.5,
                "floor": "convolutions alone, channels_last", "over_floor": 2.0, **memory,
            },
            "train": {
                "peer": "torch loop", "over_peer": 1.25, "floor": "convolutions alone", "over_floor": 2.0, **memory
            },
        }
    }  # fmt: skip
    assert gpu.ratio_lines(rows)[1] == (
        "  stormcell (auto), train: 1.25× (1.25×) as fast as torch loop; 2.00 (2.00) of convolutions alone; "
        "memory of torch loop: 0.50 peak, 0.50 held"
    )
    assert gpu.ratio_lines({"stormcell (auto)": rows["stormcell (auto)"]}) == []


def test_cases_of_gpus_and_their_order() -> None:
    assert gpu.DEFAULT_CASES[:3] == ("paper-batch16", "map128-batch16", "stream64")
    assert set(gpu.DEFAULT_CASES) <= set(gpu.GPU_CASES)
    assert not set(gpu._ON_GPU) & set(CASES)
    assert [peer.turn for peer in gpu.PEERS] == sorted(peer.turn for peer in gpu.PEERS)


def test_a_recorded_step_takes_new_frames_and_holds_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graph that computes again what it recorded, into the same memory."""

    class Graph:
        def __init__(self, compute: Any, output: torch.Tensor) -> None:
            self.compute, self.output = compute, output

        def replay(self) -> None:
            self.output.copy_(self.compute())

    def recorded(compute: Any) -> Any:
        output = compute()
        return Graph(compute, output), output

    monkeypatch.setattr(ours, "need_gpu", lambda device: None)
    monkeypatch.setattr(ours, "recorded", recorded)
    case = SAME[1]
    assert case.streaming
    made, plain = (ours.build(case, f"reference{mode}") for mode in ("+reduce-overhead", ""))
    numbers = arrays(case)
    layer = ours.module(case, numbers, engine="reference")
    state = tuple(torch.from_numpy(value)[None] for value in numbers.state)
    first = made.forward()
    torch.testing.assert_close(first, plain.forward())
    kept = first.clone()
    frames = plain.plain_x, 2 * plain.plain_x
    with torch.no_grad():
        y, _ = layer.step(frames[1], layer.step(frames[0], state)[1])
    made.plain_x = frames[1]
    torch.testing.assert_close(made.forward(), y)
    assert torch.equal(first, kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile's own
@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_our_modules_compute_the_same_inside_torch_compile(case: Any) -> None:
    exact = gpu.truth(case, "cpu")
    for precision, allowed in (("float32", 1e-5), ("bfloat16", 2e-2)):
        found = gpu.errors(ours.build(case, "bptt+default", "cpu", precision), exact, "cpu")
        assert found.keys() == exact.keys()
        assert max(found.values()) < allowed
    torch._dynamo.reset()


def test_the_benchmark_of_stores_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = str(tmp_path / "rain.zarr")
    small = ["--model", "plain", "--crop", "64", "--batch", "2", "--updates", "2"]
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 2**30)  # it sets its own
    for number, words in enumerate(
        (["build", made, "--frames", "96", "--size", "130"], ["memory", made], ["speed", made])
    ):
        told = [
            *words,
            *(small if number else []),
            "--rounds",
            "1",
            "--every",
            "0.05",
            "-o",
            str(tmp_path / f"{number}.json"),
        ]
        monkeypatch.setattr("sys.argv", ["store", *told])
        store.main()
    found = json.loads((tmp_path / "1.json").read_text(encoding="utf-8"))
    assert found["store"]["frames"] == [96, 130, 130]
    assert found["highest_mb"] >= found["imported_mb"] > 0
    assert json.loads((tmp_path / "2.json").read_text(encoding="utf-8"))["median"] > 0


@pytest.mark.slow
def test_the_benchmark_of_scaling_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    made = tmp_path / "scaling.json"
    monkeypatch.setattr(
        "sys.argv", ["scaling", "--device", "cpu", "--devices", "1,2", "--minutes", "0.05", "-o", str(made)]
    )
    scaling.main()
    rows = json.loads(made.read_text(encoding="utf-8"))["rows"]
    assert [(row["processes"], row["threads_each"]) for row in rows] == [(1, 1), (2, 1), (1, 2)]
    assert rows[0]["speedup"] == 1
    assert all(row["updates_a_second"] > 0 for row in rows)
