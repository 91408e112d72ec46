"""What is compared: equal in size, or said not to be."""

from __future__ import annotations

import pytest

from stormcell import InputError
from stormcell.comparing.entries import FAMILIES, NEAR, Entry, Shape, entries
from stormcell.comparing.tasks import MovingMnistTask
from stormcell.data.moving_mnist import moving_mnist


@pytest.fixture(scope="module")
def task() -> MovingMnistTask:
    return MovingMnistTask(moving_mnist(past=4, future=3), protocol="paper", cases=8)


@pytest.mark.parametrize("match", ["parameters", "macs", "time"])
@pytest.mark.parametrize("shape", [Shape(), Shape((16,), 5, 4), Shape((24, 16, 16), 3, 8)])
def test_families_are_as_large_as_the_first(task: MovingMnistTask, shape: Shape, match: str) -> None:
    first, *others = entries(FAMILIES[:3], task, shape, match)
    measure = Entry.macs if match == "macs" else Entry.parameters
    assert first.net == f"convlstm-{shape.kernel}x{shape.kernel}-" + "-".join(map(str, shape.hidden))
    for entry in others:
        assert measure(entry, task) == pytest.approx(measure(first, task), rel=NEAR)
        assert "off its match" not in entry.note


def test_what_cannot_match_is_pooled_and_says_so(task: MovingMnistTask) -> None:
    _, pooled, natural = entries(
        ["convlstm", "conv2d-flatten-lstm", "conv2d-flatten-lstm-natural"], task, Shape((8, 8)), "parameters"
    )
    assert "-pool" in pooled.net
    assert "before Flatten, to match" in pooled.note
    assert "pool" not in natural.net
    assert "not matched" in natural.note
    assert natural.parameters(task) > 5 * pooled.parameters(task)


def test_the_same_net_twice_has_two_names(task: MovingMnistTask) -> None:
    names = [entry.name for entry in entries(["convlstm", "convlstm", "convlstm-3x3-4"], task, Shape(), "parameters")]
    assert names == ["convlstm", "convlstm (2)", "convlstm-3x3-4"]


def test_nets_by_name_stay_as_they_are(task: MovingMnistTask) -> None:
    first, second = entries(["conv2d-lstm-5x5-7", "convlstm-s"], task, Shape(), "parameters")
    assert first.net == "conv2d-lstm-5x5-7"
    assert second.parameters(task) == 11_675_648


def test_what_each_sees(task: MovingMnistTask) -> None:
    found = {entry.name: entry for entry in entries(FAMILIES, task, Shape((8, 8), 3, 4), "parameters")}
    assert found["convlstm"].memory(task) == "3×3"
    assert found["conv2d-lstm"].memory(task) == "itself"
    assert found["conv2d-flatten-lstm"].memory(task) == "all"
    assert found["convlstm"].reach(task) == [17.5, 21.5, 25.5]
    assert found["conv2d-lstm"].reach(task) == [13.5] * 3
    assert [entry.any_size(task) for entry in found.values()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("models", "match", "message"),
    [
        (["convlstm"], "parameters", "two names or more"),
        (["convlstm", "lstm"], "parameters", "'lstm' does not fit"),
        (["convlstm", "conv2d-lstm"], "size", "--match knows parameters, macs, time"),
    ],
)
def test_what_cannot_be_compared(task: MovingMnistTask, models: list[str], match: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        entries(models, task, Shape(), match)
