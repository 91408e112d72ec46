"""CUDA graphs of calls that repeat: on a GPU with real ones; elsewhere what is recorded and kept, with a stand-in."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stormcell import ConvLSTM2d
from stormcell.engine import graphs

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU that torch can use")


@pytest.fixture(autouse=True)
def no_graphs_of_others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # sums of weights' gradients keep their order
    graphs.graphs.clear()
    yield
    graphs.graphs.clear()


# --- what is recorded, with a stand-in ---


class StandIn:
    """Replays by computing again, on memory of its own."""

    def __init__(self, compute: graphs.Compute, arguments: Sequence[Any]) -> None:
        self.compute, self.replays = compute, 0
        self.bytes = sum(value.nbytes for value in (*arguments, *compute(*arguments)))

    def __call__(self, arguments: Sequence[Any]) -> Sequence[Tensor]:
        self.replays += 1
        return self.compute(*arguments)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> graphs.Graphs:
    monkeypatch.setattr(graphs, "_Graph", StandIn)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "this one")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(graphs, "_is_recording", lambda: False)
    monkeypatch.setattr(graphs, "_switches", tuple)
    monkeypatch.setattr(graphs, "_most_bytes", lambda: 4000)
    return graphs.Graphs()


def double(value: Tensor) -> list[Tensor]:
    return [2 * value]


def recorded(made: graphs.Graphs) -> list[Any]:
    return [graph for graph in made.seen.values() if isinstance(graph, StandIn)]


def call(made: graphs.Graphs, size: int, times: int = 1, *, compute: graphs.Compute = double) -> None:
    with graphs.allowed():
        for _ in range(times):
            value = torch.rand(size)
            assert torch.equal(made.run(compute, [value])[0], 2 * value)


def test_a_call_is_recorded_when_it_comes_again_and_again(made: graphs.Graphs) -> None:
    call(made, 10, graphs.CALLS_BEFORE)
    assert not recorded(made)
    call(made, 10, 3)
    assert [graph.replays for graph in recorded(made)] == [3]
    call(made, 11, graphs.CALLS_BEFORE)
    assert len(recorded(made)) == 1
    made.clear()
    assert made.bytes == 0


def test_nothing_is_recorded_unasked_or_while_somebody_else_records(
    made: graphs.Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        made.run(double, [torch.rand(10)])
    monkeypatch.setattr(graphs, "_is_recording", lambda: True)
    call(made, 10, 5)
    monkeypatch.setattr(graphs, "_is_recording", lambda: False)
    monkeypatch.setenv(graphs.SWITCH, "0")
    call(made, 10, 5)
    assert not made.seen


def test_memory_is_bounded_and_the_least_recently_used_goes(made: graphs.Graphs) -> None:
    for size in (110, 111, 112, 113):
        call(made, size, 5)
        assert made.bytes <= 4000
    call(made, 110)
    call(made, 114, 5)
    assert made.bytes <= 4000
    assert sorted(graph.bytes // 8 for graph in recorded(made)) == [110, 112, 113, 114]


@pytest.mark.parametrize("size", [126, 300])
def test_what_is_large_is_not_recorded(size: int, made: graphs.Graphs) -> None:
    """Even if it is only large in what it makes."""
    call(made, 10, 5)
    call(made, size, 5)
    assert [graph.bytes for graph in recorded(made)] == [80]


def test_more_kinds_than_there_is_room_for_are_not_recorded_again_and_again(
    made: graphs.Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    class Counted(StandIn):
        def __init__(self, *arguments: Any) -> None:
            nonlocal count
            count += 1
            super().__init__(*arguments)

    monkeypatch.setattr(graphs, "_Graph", Counted)
    for _ in range(50):
        for size in range(110, 116):
            call(made, size)
    assert count == 6


def test_what_cannot_be_recorded_is_computed(made: graphs.Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(StandIn):
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_Graph", Fails)
    call(made, 10, graphs.CALLS_BEFORE)
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        call(made, 10)
    call(made, 10, 3)
    assert not recorded(made)


def test_the_number_of_kinds_is_bounded(made: graphs.Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_KINDS", 5)
    for size in range(1, 20):
        call(made, size)
    assert len(made.seen) == 5


# --- real ones ---


def layer(**options: Any) -> ConvLSTM2d:
    torch.manual_seed(0)
    return ConvLSTM2d(3, 8, 3, engine="triton", **options).cuda()


def train(model: Callable[..., Any], parameters: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y, (h, c) = model(x)
    loss = y.float().square().sum() + h.float().sum() * c.sum()
    return [y, h, c, *torch.autograd.grad(loss, [x, *parameters])]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], most: float = 1e-5) -> None:
    """To rounding, tensor by tensor."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= most * theirs.norm()


def count() -> int:
    return sum(not isinstance(value, int) and value is not None for value in graphs.graphs.seen.values())


@on_gpu
@pytest.mark.parametrize("options", [{}, {"peephole": "channel", "num_layers": 2, "bidirectional": True}], ids=str)
def test_what_is_replayed_has_the_numbers_of_what_is_not(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for switch in ("0", "1"):
        monkeypatch.setenv(graphs.SWITCH, switch)
        model, results = layer(**options), []
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for step in range(6):  # inputs and weights change
            x = torch.randn(2, 4, 3, 9, 11, device="cuda", generator=torch.Generator("cuda").manual_seed(step))
            values = train(model, list(model.parameters()), x)
            for parameter, gradient in zip(model.parameters(), values[4:]):
                parameter.grad = gradient
            optimizer.step()
            results += values
            with torch.inference_mode():
                results += [model(x)[0]]
        found.append([value.detach() for value in results])
    assert count() >= 3
    assert_close(found[1], found[0])


@on_gpu
def test_results_of_earlier_calls_stay_and_may_be_written_over() -> None:
    model = layer()
    parameters = list(model.parameters())
    xs = [torch.randn(2, 4, 3, 9, 11, device="cuda") for _ in range(6)]
    first = [[value.detach().clone() for value in train(model, parameters, x)] for x in xs]
    calls = [(x.clone().requires_grad_(), x) for x in xs]
    outputs = [model(x)[0] for x, _ in calls]  # all forwards before all backwards
    for (x, _), y, expected in zip(calls, outputs, first):
        again, once_more = (torch.autograd.grad(y.sum(), [x, *parameters], retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(again, once_more))
        assert torch.equal(y, expected[0])
        with torch.no_grad():
            y.fill_(math.nan)
    assert count() >= 2
    assert torch.equal(model(xs[0])[0], first[0][0])


@on_gpu
def test_whoever_records_records_our_kernels() -> None:
    model = layer()
    static = torch.randn(2, 4, 3, 9, 11, device="cuda")
    with torch.no_grad():
        for _ in range(4):
            model(static)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = model(static)
        for _ in range(2):
            static.copy_(torch.randn_like(static))
            graph.replay()
            assert torch.equal(y, model(static)[0])


@on_gpu
def test_a_step_of_a_stream_is_recorded_with_its_state() -> None:
    model = layer()
    frames = torch.randn(5, 2, 3, 9, 11, device="cuda")
    with torch.no_grad():
        expected, _ = model(frames.transpose(0, 1))
        frame, held = frames[0].clone(), torch.zeros(2, 1, 2, 8, 9, 11, device="cuda").unbind()
        model.step(frame, held)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, after = model.step(frame, held)
            for own, value in zip(held, after):
                own.copy_(value)
        for t, now in enumerate(frames):
            frame.copy_(now)
            graph.replay()
            assert_close([y], [expected[:, t]])


@on_gpu
def test_under_torch_compile_with_graphs_of_its_own() -> None:
    model = layer()
    parameters = list(model.parameters())
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(2, 4, 3, 9, 11, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        found = [value.detach().clone() for value in train(compiled, parameters, x)]
        assert_close(found, train(model, parameters, x), 1e-4)  # compiled sums have another order


@on_gpu
def test_under_ddp(tmp_path: Path) -> None:
    distributed = torch.distributed
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, alone = layer(), layer()
        parallel = nn.parallel.DistributedDataParallel(model, device_ids=[0])
        for _ in range(5):
            x = torch.randn(2, 4, 3, 9, 11, device="cuda")
            for each in (parallel, alone):
                each.zero_grad()
                each(x)[0].square().sum().backward()
            assert_close(*([value.grad for value in each.parameters()] for each in (model, alone)))
    finally:
        distributed.destroy_process_group()


@on_gpu
def test_in_threads_with_streams_of_their_own() -> None:
    model, exact, wrong = layer(), layer(), []
    exact.engine = "reference"

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            generator = torch.Generator("cuda").manual_seed(seed)
            for _ in range(8):
                x = torch.randn(2, 4, 3, 9, 11, device="cuda", generator=generator)
                if not torch.allclose(model(x)[0], exact(x)[0], rtol=1e-4, atol=1e-5):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert count() == len(threads)
