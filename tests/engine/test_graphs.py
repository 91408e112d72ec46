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
from stormcell.engine import bptt, graphs, triton
from stormcell.engine.reference import Weights

from .cases import CASES

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU that torch can use")


@pytest.fixture(autouse=True)
def no_graphs_of_others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # sums of weights' gradients keep their order
    graphs.graphs.clear()
    yield
    graphs.graphs.clear()


# --- what is recorded, with a stand-in ---


class Recorded(list[int]):
    """Sizes of what was recorded, in a stand-in: a graph that computes on its own memory and writes over what it made before."""

    memory = 0  # that it takes besides

    def capture(
        self, room: graphs._Room, compute: graphs.Compute, arguments: Sequence[Any]
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        made = compute(*arguments)
        addresses = [value.data_ptr() for value in arguments if isinstance(value, Tensor)]
        self.append(arguments[0].numel())
        room.bytes += sum(value.nbytes for value in made) + self.memory

        def replay() -> None:
            assert addresses == [value.data_ptr() for value in arguments if isinstance(value, Tensor)]
            with torch.no_grad():
                for own, value in zip(made, compute(*arguments)):
                    own.copy_(value)

        return replay, made


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    result = Recorded()
    monkeypatch.setattr(graphs._Room, "capture", lambda *given: result.capture(*given))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "this one")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(graphs, "_is_recording", lambda: False)
    monkeypatch.setattr(graphs, "_most_bytes", lambda: 64_000)
    return result


def double(value: Tensor) -> list[Tensor]:
    return [2 * value]


def call(size: int, times: int = 1, *, compute: graphs.Compute = double) -> None:
    """Of 4 · size bytes in and out; `graphs.ALIGNED` for the former, at least."""
    for _ in range(times):
        value = torch.rand(size)
        assert torch.equal(graphs.graphs.run(compute, [value])[0], 2 * value)


def test_a_call_is_recorded_when_it_comes_again_and_again(recorded: Recorded) -> None:
    call(10, graphs.CALLS_BEFORE)
    assert recorded == []
    call(10, 3)
    assert recorded == [10]
    call(11, graphs.CALLS_BEFORE)
    assert recorded == [10]
    graphs.graphs.clear()
    assert graphs.graphs.bytes == 0


def test_nothing_is_recorded_unasked_or_while_somebody_else_records(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_is_recording", lambda: True)
    call(10, 5)
    monkeypatch.setattr(graphs, "_is_recording", lambda: False)
    monkeypatch.setenv(graphs.SWITCH, "0")
    call(10, 5)
    assert recorded == []
    assert not graphs.graphs.seen


@pytest.mark.parametrize("size", [2001, 20_000])
def test_what_is_large_is_not_recorded(size: int, recorded: Recorded) -> None:
    """A quarter of what there is, in what it is given and what it makes."""
    call(10, 5)
    call(size, 5)
    call(1999, 5)
    assert recorded == [10, 1999]


def test_graphs_share_memory_for_what_they_are_given(recorded: Recorded) -> None:
    sizes = [1000, 100, 900, 200, 1000]
    for number, size in enumerate(sizes):
        call(size, 5, compute=lambda value, number=number: [2 * value])
    assert recorded == sizes
    assert graphs.graphs.bytes == 4096 + sum(4 * size for size in sizes)
    for size in (100, 1000):
        call(size, 5)


def test_what_finds_no_room_waits_and_then_makes_some(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.memory = 20_000
    monkeypatch.setattr(graphs, "CALLS_AFTER", 10)
    for size in (10, 11, 12):
        call(size, 5)
        assert graphs.graphs.bytes <= 64_000
    assert recorded == [10, 11, 12]
    call(13, 10)
    assert recorded == [10, 11, 12]
    call(13, 10)
    assert recorded == [10, 11, 12, 13]
    assert graphs.graphs.bytes < 30_000
    for size in (12, 11, 10):
        call(size)
    assert recorded == [10, 11, 12, 13, 12, 11]  # and the first waits in its turn


def test_memory_is_bounded_whatever_a_recording_takes(recorded: Recorded) -> None:
    call(10, 5)
    recorded.memory = 70_000
    call(11, 5)
    assert graphs.graphs.bytes == 0
    recorded.memory = 0
    call(11, 5)
    call(10)
    assert recorded == [10, 11, 10]


def test_what_cannot_be_recorded_is_computed(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs._Room, "capture", fail)
    call(10, graphs.CALLS_BEFORE)
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        call(10)
    call(10, 3)
    assert recorded == []


def test_the_number_of_kinds_is_bounded(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_KINDS", 5)
    for size in range(1, 20):
        call(size)
    assert len(graphs.graphs.seen) == 5


def weigh(x: Tensor, weight: Tensor) -> list[Tensor]:
    return [x * weight]


def test_parameters_are_read_where_they_are(recorded: Recorded) -> None:
    first, second = (nn.Parameter(torch.rand(3)) for _ in range(2))
    for number in range(12):
        weight = first if number % 2 else second
        with torch.no_grad():
            weight.add_(1)
            x = torch.rand(3)
            assert torch.equal(graphs.graphs.run(weigh, [x, weight])[0], x * weight)
    assert recorded == [3, 3]
    first.data = torch.rand(3)  # elsewhere
    for _ in range(5):
        with torch.no_grad():
            assert torch.equal(graphs.graphs.run(weigh, [x, first])[0], x * first)
    assert recorded == [3, 3, 3]


def test_other_weights_are_copied(recorded: Recorded) -> None:
    for _ in range(5):
        x, weight = torch.rand(2, 3)
        assert torch.equal(graphs.graphs.run(weigh, [x, weight.clone()])[0], x * weight)
    assert recorded == [3]


interprets = pytest.mark.skipif(
    triton.unavailable() is not None or torch.cuda.is_available(), reason="Triton's interpreter is not at hand"
)


class RecordedCall(triton.Call):
    @staticmethod
    def run(compute: Callable[..., Any], *arguments: Any) -> Any:
        return graphs.graphs.run(compute, arguments, triton.FUSED_PRODUCTS, triton.JOINT_ROWS)


replayed = bptt.compute_with("replayed", RecordedCall)


@interprets
@pytest.mark.parametrize(
    ("name", "autocast", "joint"),
    [
        ("plain", False, False),
        ("one step", True, False),
        ("mask, peepholes", True, True),
        ("no input", False, False),
        ("gate dropout", True, False),
        ("3D, odd kernels", False, True),
    ],
)
def test_sequences_that_are_replayed_are_the_same(
    name: str, autocast: bool, joint: bool, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but what is recorded on a GPU. Frames, states and weights change from call to call."""
    monkeypatch.setattr(graphs, "_most_bytes", lambda: 2**30)
    if joint:
        monkeypatch.setattr(triton, "JOINT_ROWS", 0)
        monkeypatch.setattr(triton, "ALIGNED", 1)
    case = CASES[name].make(torch.float32)
    weights = Weights(*(None if value is None else nn.Parameter(value) for value in case.w))
    for _ in range(graphs.CALLS_BEFORE + 2):
        with torch.no_grad():
            for value in weights:
                if value is not None:
                    value.mul_(1.1)
        state = tuple(torch.rand_like(value) for value in case.state)
        if name == "no input":  # nor a state of its own
            state = (torch.zeros(()).expand(case.state[0].shape),) * 2
        now = case._replace(x=torch.rand_like(case.x), state=state)
        results = []
        for sequence in (replayed, triton.sequence):
            leaves = [now.x.clone().requires_grad_(), *(value for value in weights if value is not None)]
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y, (h, c) = sequence(leaves[0], now.state, weights, now.form, now.mask, now.drop)
            loss = y.float().square().sum() + (h.float() * c).sum()
            results.append([y, h, c, *torch.autograd.grad(loss, leaves, allow_unused=True)])
        for ours, expected in zip(*results):
            assert (ours is None and expected is None) or torch.equal(ours, expected)
    assert len(recorded) == 2  # forward and backward


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
        state = None
        for t, now in enumerate(frames):  # and it records itself where it comes again
            y, state = model.step(now, state)
            assert_close([y], [expected[:, t]])
        assert count() == 1


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
