"""Which engine runs: by the call, by the environment, by `set_default`, and by rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stormcell import engine
from stormcell.engine import reference

from ..nn.layers import EXACT
from .cases import Recipe

CALL = Recipe(steps=2, frame=(3, 4)).make()
CASE = engine.case_of(*CALL[:4], None)


class Fake(SimpleNamespace):
    """An engine that computes as the reference does, counts its calls, and says what it is told to say."""

    def __init__(self, *, missing: str | None = None, lacks: str | None = None, slower: str | None = None) -> None:
        super().__init__(calls=0, missing=missing, lacks=lacks, slower=slower, ABOUT="a fake")

    def unavailable(self) -> str | None:
        return self.missing

    def supports(self, case: Any) -> str | None:
        assert self.missing is None, "an engine that is not there is asked nothing"
        return self.lacks

    def passed_over(self, case: Any) -> str | None:
        return self.slower

    def sequence(self, *arguments: Any) -> Any:
        self.calls += 1
        return reference.sequence(*arguments)


@pytest.fixture(autouse=True)
def nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORMCELL_ENGINE", raising=False)
    monkeypatch.setattr(engine, "_default", "auto")


def put(monkeypatch: pytest.MonkeyPatch, **fakes: Fake) -> None:
    monkeypatch.setattr(engine, "_ENGINES", {**fakes, "reference": reference})


def run(**options: Any) -> Any:
    return engine.run(*CALL[:4], **options)


def test_the_engines_of_this_machine_have_a_rule_each() -> None:
    names = list(engine.engines())
    assert names[-1] == "reference"
    assert engine.engines()["bptt"] is None
    assert engine.engines()["reference"] is None
    for name, reason in engine.engines().items():
        assert engine.about(name)
        assert reason is None or reason


def test_the_first_that_nothing_speaks_against_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "absent": Fake(missing="no compiler"),
        "narrow": Fake(lacks="it knows no peepholes"),
        "slow": Fake(slower="the map is small"),
        "good": Fake(),
        "late": Fake(),
    }
    put(monkeypatch, **fakes)
    expected = reference.sequence(*CALL[:4])
    torch.testing.assert_close(run(), expected, **EXACT)
    assert {name: fake.calls for name, fake in fakes.items() if fake.calls} == {"good": 1}
    assert engine.engines() == {name: fake.missing for name, fake in fakes.items()} | {"reference": None}
    assert engine.explain(CASE) == {
        "absent": "no compiler",
        "narrow": "it knows no peepholes",
        "slow": "the map is small",
        "good": "chosen",
        "late": "good comes first",
        "reference": "good comes first",
    }


def test_with_all_others_out_it_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, narrow=Fake(lacks="it knows no peepholes"))
    torch.testing.assert_close(run(), reference.sequence(*CALL[:4]), **EXACT)
    assert engine.explain(CASE)["reference"] == "chosen"


def test_one_that_is_asked_for_by_the_call_runs_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {"absent": Fake(missing="no compiler"), "narrow": Fake(lacks="it knows no peepholes")}
    fakes |= {"good": Fake(), "slow": Fake(slower="the map is small")}
    put(monkeypatch, **fakes)
    run(engine="slow")  # passed over is no refusal
    assert fakes["slow"].calls == 1
    with pytest.raises(ValueError, match='engine="absent" cannot compute this: no compiler'):
        run(engine="absent")
    with pytest.raises(ValueError, match='engine="narrow" cannot compute this: it knows no peepholes'):
        run(engine="narrow")
    with pytest.raises(ValueError, match="unknown engine. Expected one of: auto, absent, .*'warp'"):
        run(engine="warp")
    assert fakes["good"].calls == 0
    said = engine.explain(CASE, "slow")
    assert said["slow"] == "chosen"
    assert said["good"] == said["reference"] == "slow is asked for"
    assert said["absent"] == "no compiler"


def test_the_default_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    first, spy = Fake(), Fake()
    put(monkeypatch, first=first, spy=spy)
    run()
    assert (first.calls, spy.calls) == (1, 0)
    engine.set_default("spy")
    torch.testing.assert_close(run(), reference.sequence(*CALL[:4]), **EXACT)
    assert (first.calls, spy.calls) == (1, 1)
    run(engine="reference")  # an engine that is named outranks it
    engine.set_default("auto")
    run()
    assert (first.calls, spy.calls) == (2, 1)
    monkeypatch.setenv("STORMCELL_ENGINE", "spy")
    run()
    assert (first.calls, spy.calls) == (2, 2)
    run(engine="first")
    assert (first.calls, spy.calls) == (3, 2)


def test_unknown_names_raise_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (lambda: run(engine="warp"), lambda: engine.set_default("warp"), lambda: engine.about("warp")):
        with pytest.raises(ValueError, match="unknown engine"):
            call()
    monkeypatch.setenv("STORMCELL_ENGINE", "warp")
    with pytest.raises(ValueError, match="unknown engine.*'warp'"):
        run()
    run(engine="reference")


@pytest.mark.parametrize("way", ["set_default", "STORMCELL_ENGINE"])
def test_a_default_that_cannot_compute_a_case_leaves_it_to_the_next(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, good = Fake(lacks="it knows no peepholes"), Fake()
    put(monkeypatch, narrow=narrow, good=good)
    if way == "set_default":
        engine.set_default("narrow")
    else:
        monkeypatch.setenv("STORMCELL_ENGINE", "narrow")
    run()
    assert (narrow.calls, good.calls) == (0, 1)


def test_under_export_it_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    put(monkeypatch, fake=fake)
    monkeypatch.setattr(engine, "_is_exporting", lambda: True)
    run(engine="fake")
    assert fake.calls == 0
