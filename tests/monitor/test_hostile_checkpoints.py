"""A hostile, foreign or damaged state in a checkpoint costs one short line and no time; the training goes on, with samples chosen anew."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_explain import Alert, ExplanationMonitor, Probe
from lightning_explain import metrics as q
from lightning_explain.core.probe_form import PROBE
from lightning_explain.core.serialization import fingerprint, probe_state
from training import QUIET, DigitModule, loaders, monitor, report_of, trainer

pytestmark = QUIET
State = dict[str, Any]
HUGE, SECRET = 10**18, "\x1b[31mred\nnext"
ALERT = Alert("drift_cosine_first/saliency", below=-2)
KEY = "ExplanationMonitor{'name': 'explain'}"


def watching(**arguments: Any) -> ExplanationMonitor:
    return monitor(metrics=[q.Concentration(), q.Drift()], alerts=[ALERT], max_overhead=1e6, **arguments)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole checkpoint after two epochs."""
    folder = tmp_path_factory.mktemp("saved")
    run = trainer(folder, watching(), max_epochs=2)
    run.fit(DigitModule(), **loaders())
    run.save_checkpoint(folder / "it.ckpt")
    found: dict[str, Any] = torch.load(folder / "it.ckpt", weights_only=True)
    return found


def put(value: Any, *keys: str) -> Callable[[State], State]:
    """The state with another value somewhere; a function makes a large one when it is needed."""

    def change(state: State) -> State:
        inner = put(value, *keys[1:])(state[keys[0]]) if len(keys) > 1 else value() if callable(value) else value
        return {**state, keys[0]: inner}

    return change


def many(count: int, value: Any = 1) -> State:
    return {f"key {i}": value for i in range(count)}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def consistent(**changed: Any) -> Callable[[State], State]:
    """Other samples with the fingerprint that belongs to them, as someone writes them who knows how."""

    def change(state: State) -> State:
        probe = Probe(**{**state["probe"], **changed})
        return {**state, "probe": probe_state(probe), "ids": probe.sample_ids, "fingerprint": fingerprint(probe)}

    return change


class Odd(Tensor):
    """A tensor of a class of its own."""


ENDLESS = torch.zeros(1).expand(10**10)
WRONG: dict[str, tuple[Any, str]] = {
    # the schedule
    "last, a word": (put("x", "schedule", "last"), "schedule"),
    "last, negative": (put(-1, "schedule", "last"), "schedule"),
    "last, of 10^5 digits": (put(1 << 400_000, "schedule", "last"), "schedule"),
    "last, a float": (put(2.0, "schedule", "last"), "schedule"),
    "not_before, nothing": (put(None, "schedule", "not_before"), "schedule"),
    "seconds, NaN": (put(float("nan"), "schedule", "explain_seconds"), "schedule"),
    "seconds, a million years": (put(3e13, "schedule", "explain_seconds"), "schedule"),
    "seconds, infinite": (put(float("inf"), "schedule", "train_seconds"), "schedule"),
    "lengthened, a number": (put(2, "schedule", "lengthened"), "schedule"),
    "every, zero": (put(0, "schedule", "every"), "schedule"),
    "schedule, a list": (put([1], "schedule"), "schedule"),
    "schedule, unknown keys": (lambda s: {**s, "schedule": {**s["schedule"], **many(100_000)}}, "schedule"),
    "by steps, a word": (put("no", "by_steps"), "schedule"),
    # seed, failures and the size of a pass
    "seed, negative": (put(-1, "seed"), "seed"),
    "seed, huge": (put(1 << 400_000, "seed"), "seed"),
    "seed, a tensor": (put(torch.zeros(()), "seed"), "seed"),
    "failures, 10^5": (put(lambda: many(100_000), "failures"), "failures"),
    "failures, a word": (put({"saliency": "often"}, "failures"), "failures"),
    "failures, a list": (put(["saliency"], "failures"), "failures"),
    "failures, a long name": (put(lambda: {"x" * 10**7: 1}, "failures"), "failures"),
    "failures, colored": (put({SECRET: SECRET}, "failures"), "failures"),
    "pace, negative": (put(-1, "pace"), "pace"),
    "pace, a list": (put([7, True], "pace"), "pace"),
    # alerts
    "alerts, a word": (put({ALERT.key: {"count": "two"}}, "alerts"), "alerts"),
    "alerts, more": (put({ALERT.key: {"mood": 1}}, "alerts"), "alerts"),
    "alerts, NaN": (put({ALERT.key: {"count": 0, "first": float("nan")}}, "alerts"), "alerts"),
    "alerts, a list": (put([], "alerts"), "alerts"),
    # history
    "history, words": (put({"first": {"saliency": "x"}}, "history"), "history"),
    "history of other samples": (put({"saliency": (torch.ones(9, 1),)}, "history", "previous"), "history"),
    "history, one number": (put({"saliency": (torch.ones(()),)}, "history", "previous"), "history"),
    "history, 10^10 zeros": (put({"saliency": (ENDLESS,)}, "history", "previous"), "history"),
    "history, deep": (put(lambda: {"saliency": nested(100_000)}, "history", "first"), "history"),
    "history, names": (put(lambda: many(100_000, ()), "history", "first"), "history"),
    # samples
    "ids, nothing": (put(None, "ids"), "ids"),
    "ids, 10^7": (put(lambda: torch.arange(10**7), "ids"), "ids"),
    "ids, none": (put(torch.arange(0), "ids"), "ids"),
    "ids, one twice": (put(torch.tensor([1, 1]), "ids"), "ids"),
    "ids, yes or no": (put(torch.tensor([True]), "ids"), "ids"),
    "ids, a square": (put(torch.zeros(2, 2, dtype=torch.long), "ids"), "ids"),
    "fingerprint, a number": (put(7, "fingerprint"), "ids"),
    "fingerprint, long": (put(lambda: "f" * 10**7, "fingerprint"), "ids"),
    "samples, a number": (put(7, "probe"), "probe"),
    "samples without inputs": (put({}, "probe"), "probe"),
    "samples with more": (put(torch.ones(4), "probe", "weights"), "probe"),
    "samples, 10^5 keys": (lambda s: {**s, "probe": {**s["probe"], **many(100_000)}}, "probe"),
    "samples of 40 GB": (put(ENDLESS.expand(4, -1) if ENDLESS.ndim > 1 else ENDLESS, "probe", "inputs"), "probe"),
    "samples, others": (put(torch.zeros(4, 1, 8, 8), "probe", "inputs"), "probe"),
    "samples, NaN": (put(torch.full((4, 1, 8, 8), torch.nan), "probe", "inputs"), "probe"),
    "samples, meta": (put(torch.zeros(4, 1, 8, 8, device="meta"), "probe", "inputs"), "probe"),
    "samples, sparse": (put(torch.zeros(4, 1, 8, 8).to_sparse(), "probe", "inputs"), "probe"),
    "samples, complex": (put(torch.zeros(4, 1, 8, 8, dtype=torch.complex64), "probe", "inputs"), "probe"),
    "samples, a subclass": (put(torch.zeros(4, 1, 8, 8).as_subclass(Odd), "probe", "inputs"), "probe"),
    "samples, 10^5 inputs": (put(lambda: [torch.zeros(4)] * 100_000, "probe", "inputs"), "probe"),
    "samples, deep": (put(lambda: (nested(100_000),), "probe", "forward_args"), "probe"),
    "samples, texts": (put(lambda: {"file": ["x"] * 10**6}, "probe", "meta"), "probe"),
    "names, colored": (put([SECRET, 3], "probe", "class_names"), "probe"),
    "selection, nothing": (put(None, "selection"), "probe"),
    "selection, deep": (put(lambda: nested(100_000), "selection"), "probe"),
    # all of it
    "a list": (lambda _: ["state"], "seed"),
    "a deep list": (lambda _: nested(100_000), "seed"),
    "a number": (lambda _: 7, "seed"),
    "nothing": (lambda _: {}, "seed"),
    "a version of 10^7 letters": (put(lambda: "9" * 10**7, "version"), "what it does not know"),
    "10^5 unknown keys of a newer version": (lambda s: {**s, **many(100_000), "version": 9}, "what it does not know"),
}


def loaded(watch: ExplanationMonitor, state: Any) -> list[str]:
    """What is said while a state is loaded, which takes no time."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        begun = time.process_time()
        watch.load_state_dict(state)
        spent = time.process_time() - begun
    assert spent < 1
    return [str(one.message) for one in said]


@pytest.mark.parametrize(("change", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_part_is_left_out_with_one_short_line(change: Any, part: str, checkpoint: dict[str, Any]) -> None:
    state = checkpoint["callbacks"][KEY]
    watch = watching()
    (line,) = loaded(watch, change(state))
    assert f"it cannot restore {part}" in line
    assert len(line) <= 300
    assert line.isprintable()
    assert watch._explainer.seed == 0
    assert loaded(watching(), watch.state_dict()) == [], "what it saves now is in order"
    raising = watching(on_error="raise")
    if "invalid" in line:
        with pytest.raises(ValueError, match=f"it cannot restore {part}") as raised:
            raising.load_state_dict(change(state))
        assert len(str(raised.value)) <= 300


def test_an_intact_state_is_restored_in_silence(checkpoint: dict[str, Any]) -> None:
    watch = watching()
    assert loaded(watch, checkpoint["callbacks"][KEY]) == []
    assert watch.probe is not None
    assert len(watch._memory.history.ids) == 4
    assert len(WRONG) >= 60


def resumed(root: Path, checkpoint: dict[str, Any], change: Any) -> tuple[ExplanationMonitor, list[str], DigitModule]:
    """A training that goes on for an epoch from a checkpoint with another state of the monitor."""
    callbacks = {**checkpoint["callbacks"], KEY: change(checkpoint["callbacks"][KEY])}
    torch.save({**checkpoint, "callbacks": callbacks}, root / "hostile.ckpt")
    watch, module = watching(), DigitModule()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(root, watch, max_epochs=3).fit(module, **loaders(), ckpt_path=root / "hostile.ckpt")
    lines = [str(one.message) for one in said if "ExplanationMonitor" in str(one.message)]
    assert all(len(line) <= 300 and line.isprintable() for line in lines)
    return watch, lines, module


def both(*changes: Any) -> Callable[[State], State]:
    def change(state: State) -> State:
        for one in changes:
            state = one(state)
        return state

    return change


TRAINED: dict[str, tuple[Any, str]] = {
    "explained in the far future": (put(HUGE // 1000, "schedule", "last"), "the schedule starts again"),
    "put off to the far future": (
        both(put(HUGE // 1000, "schedule", "not_before"), put(True, "schedule", "lengthened")),
        "",
    ),
    "samples of another shape": (consistent(inputs=torch.zeros(4, 3, 5, 7)), "saved in the checkpoint cannot be expl"),
    "samples that are whole numbers": (
        consistent(inputs=torch.zeros(4, 1, 8, 8, dtype=torch.long)),
        "saved in the checkpoint cannot be explained",
    ),
    "labels that are none": (consistent(targets=torch.full((4,), 99)), "saved in the checkpoint cannot be explained"),
    "earlier maps of another shape": (
        both(
            put({"saliency": (torch.ones(4, 1, 3, 5, 2),)}, "history", "first"),
            put({"saliency": (torch.ones(4, 2),)}, "history", "previous"),
        ),
        "the earlier maps of ['saliency'] in the checkpoint do not lie on the probe samples; they are left out",
    ),
}


@pytest.mark.parametrize(("change", "line"), TRAINED.values(), ids=TRAINED)
def test_a_training_goes_on_from_what_is_wrong_only_with_this_model(
    change: Any, line: str, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    watch, lines, _ = resumed(tmp_path, checkpoint, change)
    assert [line in one for one in lines] == [True] * bool(line), lines
    report = report_of(watch)
    assert (report.epoch, len(report.ids)) == (2, 4)
    assert report.attributions["saliency"].shape == (4, 1, 8, 8)


def test_a_probe_has_no_field_without_a_form() -> None:
    # What the inputs are is found anew with the model.
    assert PROBE.keys() | {"modalities"} == {field.name for field in fields(Probe)}
    assert replace(Probe(torch.zeros(2, 3)), targets=torch.zeros(2)).targets is not None
