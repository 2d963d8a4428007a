"""Tensors of subclasses (MONAI's ``MetaTensor``, torchvision's ``tv_tensors``) and of inference mode, wherever they come from: what
is kept and reported is plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, explain, load_reports
from lightning_explain import metrics as q
from networks import digits
from training import QUIET, SAFE, Blind, report_of, trainer

pytestmark = QUIET


class Meta(Tensor):
    """Hands a dictionary on through every function, as MONAI's tensors do."""

    meta: dict[str, Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, Meta):
            found.meta = {"affine": object()}
        return found


class Bare(Tensor):
    """Does nothing of its own."""


def of(kind: type[Tensor], x: Tensor) -> Tensor:
    if kind is Tensor:
        with torch.inference_mode():
            return x.clone()
    return x.as_subclass(kind)


KINDS = {"a dictionary": Meta, "nothing of its own": Bare, "of inference mode": Tensor}


def odd(value: Any) -> Iterator[Any]:
    """The tensors in nested containers that are not plain."""
    if isinstance(value, (tuple, list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from odd(inner)
    elif isinstance(value, Tensor) and (type(value) is not Tensor or value.is_inference()):
        yield value


class Returning(nn.Module):
    """Returns logits of that kind."""

    def __init__(self, kind: type[Tensor]) -> None:
        super().__init__()
        self.head, self.kind = nn.Linear(64, 10), kind

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(x.flatten(1))
        return found if self.kind is Tensor else of(self.kind, found)


class Quiet(Blind):
    """Validates, and logs nothing: Lightning itself copies what is logged, which not all subclasses can."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def given(where: str, kind: type[Tensor]) -> dict[str, Any]:
    x, y = (part[:3] for part in digits())
    if where == "probe":
        stds = (of(kind, torch.ones(1, 1, 8, 8)),)
        probe = Probe(of(kind, x), of(kind, y), of(kind, torch.arange(3)), of(kind, x[:, 0] > 0), stds=stds)
        return {"probe": probe, "metrics": [q.Drift(), q.RelevanceMass()]}
    # To read samples from a loader takes as long as the rest.
    return {"probe": [0, 1, 2] if where == "batches" else Probe(x, y), "metrics": [q.Drift()]}


def loader(kind: type[Tensor] | None) -> DataLoader[Any]:
    x, y = (part[:8] for part in digits())

    def collate(samples: list[Any]) -> Any:
        parts = tuple(torch.stack(list(part)) for part in zip(*samples, strict=True))
        return parts if kind is None else tuple(of(kind, part) for part in parts)

    return DataLoader(TensorDataset(x, y), batch_size=4, collate_fn=collate)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("where", ["batches", "probe", "outputs"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_kept_and_reported_is_plain_and_a_checkpoint_can_be_read_again(
    kind: type[Tensor], where: str, save: bool, tmp_path: Path
) -> None:
    # Training itself cannot differentiate what was made in inference mode, but validation reads it.
    training, validation = loader(kind if where == "batches" and kind is not Tensor else None), loader(kind)

    def run(epochs: int, **arguments: Any) -> ExplanationMonitor:
        watch = ExplanationMonitor(methods=["InputXGradient"], save_probe=save, on_error="raise", **given(where, kind))
        made = trainer(tmp_path, watch, ModelCheckpoint(tmp_path, filename=str(epochs)), max_epochs=epochs)
        net = Returning(kind) if where == "outputs" else None
        made.fit(Quiet(net), training, validation if where == "batches" else loader(None), **arguments)
        return watch

    first = run(1)
    path = tmp_path / "1.ckpt"
    saved = torch.load(path, weights_only=True)["callbacks"]
    assert any("ExplanationMonitor" in key for key in saved)
    assert [*odd(saved), *odd(vars(report_of(first)))] == []
    resumed = run(2, ckpt_path=path, **SAFE)
    assert report_of(resumed).fingerprint == report_of(first).fingerprint
    assert len(load_reports(tmp_path / "explain")) == 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_explain_reports_plain_tensors_equal_to_those_of_a_plain_probe(kind: type[Tensor]) -> None:
    x, y = (part[:3] for part in digits())
    model = Returning(kind)
    found = explain(model, Probe(of(kind, x), of(kind, y)), ["InputXGradient"], [q.Completeness()])
    plain = explain(model, Probe(x, y), ["InputXGradient"], [q.Completeness()])
    assert [*odd(vars(found))] == []
    assert torch.equal(found.attributions["input_x_gradient"], plain.attributions["input_x_gradient"])


def test_labels_of_inference_mode_are_explained_in_a_test_step() -> None:
    x, y = (part[:3] for part in digits())
    model = Returning(Tensor)
    expected = explain(model, Probe(x, y), ["InputXGradient"], [])
    with torch.inference_mode():
        found = explain(model, Probe({"x": x.clone()}, y.clone()), ["InputXGradient"], [])
    assert torch.equal(found.attributions["input_x_gradient"], expected.attributions["input_x_gradient"])
