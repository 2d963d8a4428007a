"""The pace of passes: the fastest way wins if it is clearly faster, and a model that insists on a layout keeps it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, explain
from lightning_explain import methods as m
from lightning_explain.pace import Pace, candidates
from lightning_explain.pipeline import Explainer
from lightning_explain.types import Rows
from training import QUIET, Blind, monitor, trainer


class Sleeping(nn.Module):
    """A network that takes a time that the test says, for each call and layout."""

    def __init__(self, seconds: object) -> None:
        super().__init__()
        self.seconds = seconds
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds(len(x), not x.is_contiguous()))  # type: ignore[operator]
        return self.head(x.mean((2, 3)))


def pace(model: nn.Module, limit: int = 64) -> Pace:
    probe = Probe(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    return Explainer({}, {}, limit=limit).pace(model, probe)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda n, last: 0.02, Pace(64, False)),
        (lambda n, last: 0.002 * n * (0.2 if n == 16 and not last else 1), Pace(16, False)),
        (lambda n, last: 0.002 * n * (0.3 if last and n == 32 else 1), Pace(32, True)),
        (lambda n, last: 0.002 * n, Pace(64, False)),
    ],
    ids=["large passes", "small passes", "channels last", "no difference"],
)
def test_what_is_clearly_fastest_is_chosen(seconds: object, expected: Pace) -> None:
    assert pace(Sleeping(seconds)) == expected


def test_a_slow_network_is_not_tried_in_every_way() -> None:
    calls = []
    assert pace(Sleeping(lambda n, last: calls.append(n) or 1.2)) == Pace(64, False)
    assert calls == [64, 64]


def test_a_network_that_insists_on_a_layout_keeps_it() -> None:
    class Viewing(Sleeping):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(len(x), 3, 8, 8).view(-1).view(x.shape))

    assert not pace(Viewing(lambda n, last: 0.001 if last else 0.005)).channels_last


def test_there_is_nothing_to_try_for_few_rows_or_whole_numbers() -> None:
    def row(x: Tensor) -> Rows:
        return Rows((x,), (x,), (), torch.zeros(1), torch.zeros(1))

    image = row(torch.zeros(1, 3, 8, 8))
    assert candidates(8, image) == [Pace(8)]
    assert candidates(64, row(torch.zeros(1, 3, 8, 8, dtype=torch.long))) == [Pace(64)]
    assert candidates(32, row(torch.zeros(1, 5))) == [Pace(32), Pace(16)]
    assert candidates(16, image) == [Pace(16), Pace(16, True)]


def test_the_layout_does_not_change_the_numbers_nor_how_they_lie() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    probe = Probe(torch.randn(5, 3, 8, 8), torch.arange(5) % 3)
    methods = {"ig": m.IntegratedGradients(n_steps=4), "cam": m.LayerGradCam("0"), "occlusion": m.Occlusion((3, 4, 4))}
    first, last = (
        Explainer(methods, {}, channels_last=layout).check(model, probe).explain(model, probe).attributions
        for layout in (False, True)
    )
    for name in methods:
        torch.testing.assert_close(last[name], first[name], rtol=1e-10, atol=1e-12)
        assert last[name].is_contiguous()
    assert explain(model, probe, methods, []).attributions.keys() == first.keys()


def test_a_checkpoint_keeps_the_pace_unless_the_user_says_one() -> None:
    state = {**ExplanationMonitor().state_dict(), "pace": [32, True]}
    free, told = ExplanationMonitor(), ExplanationMonitor(max_examples_per_pass=8)
    for watch in (free, told):
        watch.load_state_dict(state)
    assert free.state_dict()["pace"] == [32, True]
    assert "pace" not in told.state_dict()


class TestUsedAgain:
    pytestmark = QUIET

    def test_a_second_training_finds_its_own_pace_and_a_resumed_one_keeps_that_of_its_checkpoint(
        self, tmp_path: Path
    ) -> None:
        x, y = torch.randn(32, 3, 8, 8), torch.arange(32) % 2
        data = DataLoader(TensorDataset(x, y), batch_size=32)
        watch = monitor(probe=Probe(x[:2], y[:2]), metrics=[])

        def fitted(layout: bool, path: Path, epochs: int = 1, ckpt_path: Path | None = None) -> object:
            ran = trainer(tmp_path, watch, max_epochs=epochs)
            module = Blind(Sleeping(lambda n, last: 0.001 * n * (0.2 if last == layout else 1)))
            ran.fit(module, data, ckpt_path=ckpt_path)
            ran.save_checkpoint(path)
            return watch.state_dict()["pace"][1]

        first, later = tmp_path / "first.ckpt", tmp_path / "later.ckpt"
        assert fitted(True, first) is True
        assert fitted(False, later) is False
        assert fitted(False, later, epochs=2, ckpt_path=first) is True
