"""The pass size is the one that is clearly fastest; the memory format changes neither numbers nor strides of maps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from clock import Clock
from lightning_explain import ExplanationMonitor, Probe, explain, load_reports
from lightning_explain import methods as m
from lightning_explain.core.probe import Samples
from lightning_explain.engine.pass_size import candidates, synchronize, within_memory
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.monitor import beside as beside_training
from training import QUIET, Blind, Failing, trainer
from training import monitor_of_digits as monitor
from workers import Here


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Only the networks of these tests take time."""
    return Clock(monkeypatch)


class Sleeping(nn.Module):
    """A network that takes a time that the test says, for each call."""

    def __init__(self, seconds: object) -> None:
        super().__init__()
        self.seconds = seconds
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds(len(x)))  # type: ignore[operator]
        return self.head(x.mean((2, 3)))


def pass_size(model: nn.Module, limit: int = 64) -> int:
    probe = Probe(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    return Explainer({}, {}, limit=limit).check(model, probe).fastest(model, probe).limit


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda n: 0.02, 64),
        (lambda n: 0.002 * n * (0.2 if n == 16 else 1), 16),
        (lambda n: 0.002 * n * (0.3 if n == 32 else 1), 32),
        (lambda n: 0.002 * n, 64),
    ],
    ids=["large passes", "small passes", "passes between them", "no difference"],
)
def test_what_is_clearly_fastest_is_chosen(seconds: object, expected: int) -> None:
    assert pass_size(Sleeping(seconds)) == expected


def test_the_size_is_doubled_until_a_pass_is_slower() -> None:
    calls: list[int] = []
    assert pass_size(Sleeping(lambda n: calls.append(n) or 0.002 * n * (0.2 if n == 16 else 1))) == 16
    assert calls[3:] == [16, 16, 16, 32, 32], "behind the three runs of the check"


def test_a_slow_network_is_not_tried_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_explain.engine.pass_size.BUDGET", 0.02)
    calls: list[int] = []
    assert pass_size(Sleeping(lambda n: calls.append(n) or 0.012)) == 64
    assert set(calls[3:]) == {16}


def test_there_is_nothing_to_try_for_few_samples_or_whole_numbers() -> None:
    def sample(x: Tensor) -> Samples:
        return Samples((x,), (x,), (), torch.zeros(1), torch.zeros(1))

    image = sample(torch.zeros(1, 3, 8, 8))
    assert candidates(8, image) == [8]
    assert candidates(64, sample(torch.zeros(1, 3, 8, 8, dtype=torch.long))) == [64]
    assert candidates(32, sample(torch.zeros(1, 5))) == [16, 32]
    assert candidates(64, image) == [16, 32, 64]


def test_the_layout_does_not_change_the_numbers_nor_how_they_lie() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    probe = Probe(torch.randn(5, 3, 8, 8), torch.arange(5) % 3)
    methods = {"ig": m.IntegratedGradients(n_steps=4), "cam": m.LayerGradCam("0"), "occlusion": m.Occlusion((3, 4, 4))}
    first, last = (explain(model, probe, methods, [], channels_last=layout).attributions for layout in (False, True))
    for name in methods:
        torch.testing.assert_close(last[name], first[name], rtol=1e-10, atol=1e-12)
        assert last[name].is_contiguous()


def test_a_checkpoint_keeps_the_pass_size_unless_the_user_says_one() -> None:
    state = {**ExplanationMonitor().state_dict(), "pace": 32}
    free, fixed = ExplanationMonitor(), ExplanationMonitor(max_examples_per_pass=8)
    for watch in (free, fixed):
        watch.load_state_dict(state)
    assert free.state_dict()["pace"] == 32
    assert "pace" not in fixed.state_dict()


@pytest.mark.parametrize("damaged", [0, -2, 2.5, True, "two", [2], {}, None])
def test_a_damaged_pass_size_in_a_checkpoint_is_ignored_with_one_line(damaged: object) -> None:
    watch = ExplanationMonitor()
    with pytest.warns(UserWarning, match=r"cannot restore pace \(invalid: .*instead of a whole number") as caught:
        watch.load_state_dict({**watch.state_dict(), "pace": damaged})
    assert len(caught) == 1
    assert "pace" not in watch.state_dict()


def test_work_of_an_accelerator_is_waited_for_before_and_after_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("lightning_explain.engine.pass_size.synchronize", lambda device: events.append(device.type))
    assert pass_size(Sleeping(lambda n: events.append("pass") or 0.0)) in (16, 32, 64)
    timed = events[events.index("cpu") :]
    assert timed == ["cpu", "pass", "cpu"] * (len(timed) // 3)


def test_only_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for device in ("cpu", "cuda:0", "mps"):
        synchronize(torch.device(device))
    assert waited == [torch.device("cuda:0"), torch.device("mps")]


CUDNN = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
"""How some libraries say that memory ran out."""


class Full(nn.Module):
    """A network for whose passes there is memory up to a number of samples; ``note`` is called with the size of each."""

    def __init__(self, most: int = 8, error: Exception = CUDNN, note: Callable[[int], Any] = lambda size: None) -> None:
        super().__init__()
        self.most, self.error, self.note = most, error, note
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.note(len(x))
        if len(x) > self.most:
            raise self.error
        return self.head(x.mean((2, 3)))


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    CUDNN,
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 384 KB, max allowed: 18.1 GB)."
    ),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 400000000 bytes."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 400000000 bytes."),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_what_fits_into_memory_is_found_once_and_kept(error: Exception) -> None:
    probe, sizes = Probe(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])), list[int]()
    model = Full(error=error, note=lambda size: sizes.append(size))
    ready = Explainer({"ig": m.IntegratedGradients(n_steps=16)}, {}, limit=64).check(model, probe)
    sizes.clear()
    first = ready.explain(model, probe)
    assert max(sizes) == 64
    assert ready.pass_size == 8
    sizes.clear()
    second = ready.explain(model, probe)
    assert max(sizes) == 8
    torch.testing.assert_close(second.attributions, first.attributions)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    tried = list[int]()

    def work(limit: int) -> None:
        tried.append(limit)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        within_memory(work, 64)
    assert type(caught.value) is RuntimeError
    assert tried == [64]


def test_a_method_for_which_there_is_never_memory_does_not_make_the_passes_of_others_smaller() -> None:
    probe, sizes = Probe(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])), list[int]()
    model = Full(most=64, note=lambda size: sizes.append(size))
    methods = {"greedy": Failing(torch.OutOfMemoryError), "ig": m.IntegratedGradients(n_steps=16)}
    ready = Explainer(methods, {}, limit=64, raising=False).check(model, probe)
    sizes.clear()
    report = ready.explain(model, probe)
    assert report.failures.keys() == {"greedy"}
    assert "ig" in report.attributions
    assert (max(sizes), ready.pass_size) == (64, 64)


class TestInTraining:
    pytestmark = QUIET

    @pytest.mark.parametrize("beside", [False, True])
    def test_what_fits_into_memory_is_kept_and_stored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
    ) -> None:
        monkeypatch.setattr(Here, "workers", [])
        monkeypatch.setattr(beside_training, "Worker", Here)
        x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
        watch = monitor(
            methods={"ig": m.IntegratedGradients(n_steps=16)},
            metrics=[],
            probe=Probe(x[:4], y[:4]),
            max_examples_per_pass=64,
            beside=beside,
            when_busy="wait",
        )
        trainer(tmp_path, watch, max_epochs=3).fit(Blind(Full()), DataLoader(TensorDataset(x, y), batch_size=8))
        assert [report.run.pass_size for report in load_reports(tmp_path)] == [8, 8, 8]
        assert watch._ready.limit == 8
        assert watch.state_dict()["pace"] == 8

    @pytest.mark.filterwarnings("ignore:The model's forward changes 'net.seconds.calls'")
    def test_it_is_timed_before_the_first_explanation_and_kept(self, tmp_path: Path) -> None:
        x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 2
        calls: list[int] = []
        watch = monitor(probe=Probe(x[:4], y[:4]))
        net = Sleeping(lambda n: calls.append(n) or 0.0005 * n * (0.2 if n == 28 else 1))
        trainer(tmp_path, watch, max_epochs=2).fit(Blind(net), DataLoader(TensorDataset(x, y), batch_size=64))
        check, step, explanation = [4, 3, 1], [64], [4, 8]
        assert calls == [*check, *step, *[28, 28, 28, 56, 56], *explanation, *step, *explanation]
        assert watch.state_dict()["pace"] == 28
        assert [report.run.pass_size for report in load_reports(tmp_path)] == [28, 28]


class TestUsedAgain:
    pytestmark = QUIET

    def test_a_second_training_finds_its_own_pass_size_and_a_resumed_one_keeps_that_of_its_checkpoint(
        self, tmp_path: Path
    ) -> None:
        x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 2
        data = DataLoader(TensorDataset(x, y), batch_size=64)
        watch = monitor(probe=Probe(x[:2], y[:2]), metrics=[])

        def fitted(small: bool, path: Path, epochs: int = 1, ckpt_path: Path | None = None) -> object:
            ran = trainer(tmp_path, watch, max_epochs=epochs)
            # In small passes a sample takes a fifth of the time, or five times as long.
            module = Blind(Sleeping(lambda n: 0.001 * n * ((0.2 if small else 5) if n == 28 else 1)))
            ran.fit(module, data, ckpt_path=ckpt_path)
            ran.save_checkpoint(path)
            return watch.state_dict()["pace"]

        first, later = tmp_path / "first.ckpt", tmp_path / "later.ckpt"
        assert fitted(True, first) == 28
        assert fitted(False, later) == 56
        assert fitted(False, later, epochs=2, ckpt_path=first) == 28
