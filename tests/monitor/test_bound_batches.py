"""Batches of every form reach the model as the user's own step passes them, or nothing is explained, and that is said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from lightning_explain import ExplanationMonitor, Probe, ProbeSelection, explain, load_reports
from lightning_explain import methods as m
from lightning_explain.core.serialization import fingerprint
from lightning_explain.probes.selection import collect
from training import QUIET, monitor, report_of, told_in, trainer

pytestmark = QUIET
CLASSES = 4


class Samples(Dataset[dict[str, Any]]):
    """Images whose bright band is their class, with a reference of noise and a token type for each of four rows."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator, label = torch.Generator().manual_seed(index), index % CLASSES
        image = 0.1 * torch.randn(CLASSES, 6, generator=generator)
        image[label] += 1
        reference, types = torch.randn(CLASSES, 6, generator=generator), torch.arange(CLASSES) % 2
        return {"reference": reference, "image": image, "types": types, "label": label, "path": f"{index}.png"}


class Net(nn.Module):
    """Reads the class from the image, disturbed by the reference; whole numbers scale the bands."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.reference = nn.Linear(CLASSES * 6, CLASSES), nn.Linear(CLASSES * 6, CLASSES)

    def forward(self, image: Tensor, reference: Tensor, types: Tensor | None = None) -> Tensor:
        image = image if types is None else image * (1 + types[..., None])
        return self.image(image.flatten(1)) + 0.3 * self.reference(reference.flatten(1))


class Module(pl.LightningModule):
    """Calls itself by ``call(module, batch)``; notes what it returned in the last validation batch."""

    def __init__(self, call: Callable[[Any, Any], Tensor], labels: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.net, self.call, self.labels = Net(), call, labels

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.call(self, batch), self.labels(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen = self.call(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class ByName(Module):
    def forward(self, image: Tensor, reference: Tensor, types: Tensor | None = None) -> Tensor:
        return self.net(image, reference, types)


class Kwargs(Module):
    def forward(self, **batch: Tensor) -> Tensor:
        return self.net(**{key: batch[key] for key in ("image", "reference", "types") if key in batch})


class Whole(Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["image"], batch["reference"])


class Types(Module):
    def forward(self, types: Tensor, image: Tensor) -> Tensor:
        return self.net(image, 0 * image, types)


@dataclass
class Record:
    reference: Tensor
    image: Tensor
    label: Tensor


class Named(NamedTuple):
    reference: Tensor
    image: Tensor
    label: Tensor


def without_types(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "types"}


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: batch[key] for key in ("reference", "image")}


Form = tuple[type[Module], Callable[[dict[str, Any]], Any], Callable[[Any, Any], Tensor], Callable[[Any], Tensor]]
FORMS: dict[str, Form] = {
    "a mapping in another order": (
        ByName,
        without_types,
        lambda net, b: net(b["image"], b["reference"]),
        lambda b: b["label"],
    ),
    "forward(**batch), without labels": (
        Kwargs,
        lambda b: {k: v for k, v in b.items() if k != "path"},
        lambda net, b: net(**b),
        lambda b: b["label"],
    ),
    "a dataclass": (
        ByName,
        lambda b: Record(b["reference"], b["image"], b["label"]),
        lambda net, b: net(b.image, b.reference),
        lambda b: b.label,
    ),
    "a named tuple": (
        ByName,
        lambda b: Named(b["reference"], b["image"], b["label"]),
        lambda net, b: net(b.image, b.reference),
        lambda b: b.label,
    ),
    "nested": (
        ByName,
        lambda b: {"inputs": inputs(b), "label": b["label"]},
        lambda net, b: net(**b["inputs"]),
        lambda b: b["label"],
    ),
    "one mapping as the argument": (Whole, lambda b: (inputs(b), b["label"]), lambda net, b: net(b[0]), lambda b: b[1]),
    "the whole batch as the argument, with a column of labels": (
        Whole,
        lambda b: {**inputs(b), "label": b["label"][:, None]},
        lambda net, b: net(b),
        lambda b: b["label"][:, 0],
    ),
    "labels beside no weights": (
        Whole,
        lambda b: (inputs(b), (b["label"], None)),
        lambda net, b: net(b[0]),
        lambda b: b[1][0],
    ),
    "whole numbers first": (
        Types,
        lambda b: [b["types"], b["image"], b["label"]],
        lambda net, b: net(b[0], b[1]),
        lambda b: b[2],
    ),
}


def collated(form: Callable[[dict[str, Any]], Any]) -> DataLoader[Any]:
    """Batches of 8 in that form."""
    return DataLoader(Samples(), batch_size=8, collate_fn=lambda items: form(default_collate(items)))


@pytest.mark.parametrize(("kind", "form", "call", "labels"), FORMS.values(), ids=FORMS.keys())
def test_the_monitor_predicts_what_the_validation_predicts(
    kind: type[Module], form: Any, call: Any, labels: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    # The probe is the last validation batch.
    watch = monitor(probe=ProbeSelection(indices=range(8, 16)), hook="validation_epoch_end", metrics=[])
    module = kind(call, labels)
    trainer(tmp_path, watch).fit(module, collated(form), collated(form))
    report = report_of(watch)
    torch.testing.assert_close(report.outputs, module.seen)
    assert report.ids.tolist() == list(range(8, 16))
    assert not module._forward_pre_hooks
    assert not told_in(recwarn)
    # All of it lies on the parts that the network reads, most of it on the image.
    shares = [float(part.abs().sum()) for part in as_parts(report.attributions["saliency"])]
    assert shares[-1 if kind in (Kwargs, Whole) else 0] == max(shares)


def as_parts(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def test_texts_of_the_batches_are_in_the_report_and_its_file(tmp_path: Path) -> None:
    watch = monitor(probe=ProbeSelection(indices=[3, 1]), metrics=[])
    module = ByName(FORMS["a mapping in another order"][2], lambda b: b["label"])
    trainer(tmp_path, watch).fit(module, collated(without_types), collated(without_types))
    assert report_of(watch).meta == {"path": ("3.png", "1.png")}
    (stored,) = load_reports(tmp_path / "explain")
    assert list(stored.meta["path"]) == ["3.png", "1.png"]


# -- checked against the user's own call -------------------------------------------------------------------------------


def swapped(net: Any, batch: dict[str, Any]) -> Tensor:
    return net(batch["reference"], batch["image"])


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


STEPS: dict[str, tuple[Callable[[Any, Any], Tensor], str | None]] = {
    "the same": (lambda net, b: net(b["image"], b["reference"]), None),
    "by name": (lambda net, b: net(reference=b["reference"], image=b["image"]), None),
    "computed": (lambda net, b: net(b["reference"] + 0, b["image"] + 0), None),
    "one is computed": (lambda net, b: net(b["image"] * 2, b["reference"]), None),
    "swapped": (swapped, r"image=batch\['reference'\], reference=batch\['image'\], but .* image=batch\['image'\]"),
    "one for both": (lambda net, b: net(b["image"], b["image"]), r"image=batch\['image'\], reference=batch\['image'\], but"),
    "swapped, the other computed": (lambda net, b: net(b["reference"], b["image"] * 1), r"image=batch\['reference'\], reference=..., but"),
    "one more": (lambda net, b: net(b["image"], b["reference"], b["types"]), r"types=batch\['types'\], but"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), STEPS.values(), ids=STEPS.keys())
def test_a_step_that_passes_something_else_ends_the_explanations_but_not_the_training(
    call: Any, message: str | None, tmp_path: Path
) -> None:
    def run(*callbacks: pl.Callback) -> Module:
        torch.manual_seed(0)
        module = ByName(call, lambda b: b["label"])
        form = dict if message and "types" in message else without_types
        trainer(tmp_path, *callbacks, limit_val_batches=1).fit(module, collated(form), collated(form))
        return module

    # A probe of two inputs, so that the third argument is not passed.
    read = None if message is None or "types" not in message else (lambda b: ((b["image"], b["reference"]), b["label"]))
    watch = monitor(metrics=[], batch_fn=read)
    with pytest.warns(RuntimeWarning, match=message) if message else nullcontext():
        module = run(watch)
    assert (watch.last_report is None) == (message is not None)
    assert not module._forward_pre_hooks
    if call is swapped:
        assert all(map(torch.equal, weights(module), weights(run())))


def test_the_difference_is_raised_if_that_is_asked_for(tmp_path: Path) -> None:
    watch = monitor(metrics=[], on_error="raise")
    with pytest.raises(ValueError, match=r"called with image=batch.*Give batch_fn="):
        trainer(tmp_path, watch).fit(
            ByName(swapped, lambda b: b["label"]), collated(without_types), collated(without_types)
        )


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_validation_or_test_is_compared_too(stage: str, tmp_path: Path) -> None:
    module, watch = ByName(swapped, lambda b: b["label"]), monitor(metrics=[])
    module.test_step = module.validation_step  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="called with image=batch"):
        getattr(trainer(tmp_path, watch), stage)(module, collated(without_types), verbose=False)
    assert watch.last_report is None


def test_a_function_of_the_user_that_changes_the_batch_changes_a_copy(tmp_path: Path) -> None:
    def read(batch: dict[str, Any]) -> tuple[Any, Tensor]:
        batch["image"].zero_()
        return (batch.pop("image"), batch.pop("reference")), batch["label"]

    def run(*callbacks: pl.Callback) -> Module:
        torch.manual_seed(0)
        module = ByName(FORMS["a mapping in another order"][2], lambda b: b["label"])
        trainer(tmp_path, *callbacks).fit(module, collated(without_types), collated(without_types))
        return module

    assert all(map(torch.equal, weights(run(monitor(metrics=[], batch_fn=read))), weights(run())))


def test_a_compiled_module_and_a_function_of_the_user_are_left_alone(tmp_path: Path) -> None:
    watch = monitor(metrics=[], forward_fn=lambda model, image, reference: model(reference, image))
    module = ByName(swapped, lambda b: b["label"])
    trainer(tmp_path, watch, max_epochs=1).fit(module, collated(without_types), collated(without_types))
    assert watch.last_report is not None
    module._compiled_call_impl = module._call_impl
    trainer(tmp_path, watch := monitor(metrics=[])).fit(module, collated(without_types), collated(without_types))
    assert watch.last_report is not None


# -- other kinds -------------------------------------------------------------------------------------------------------


class Bert(nn.Module):
    """Called as transformers' BertForSequenceClassification is."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types, self.head = nn.Embedding(11, 6), nn.Embedding(2, 6), nn.Linear(6, 3)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        found = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        found = found if token_type_ids is None else found + self.types(token_type_ids)
        mask = torch.ones_like(found[..., :1]) if attention_mask is None else attention_mask[..., None]
        logits = self.head((found.tanh() * mask).sum(1) / mask.sum(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_types_and_masks_go_where_bert_takes_them() -> None:
    torch.manual_seed(0)
    bert, ids, types = Bert(), torch.randint(0, 11, (4, 5)), torch.randint(0, 2, (4, 5))
    mask, embeds = (torch.arange(5) < torch.tensor([[2], [3], [4], [5]])).long(), torch.randn(4, 5, 6)
    named = {"inputs_embeds": embeds, "token_type_ids": types, "attention_mask": mask}
    with pytest.warns(UserWarning, match=r"Explained: 'inputs_embeds'. Passed to the model, but not explained: 'att"):
        report = explain(bert, Probe(named, torch.tensor([0, 1, 2, 0])), ["Saliency"], [])
    torch.testing.assert_close(report.outputs, bert(**named)["logits"])
    assert bool((as_parts(report.attributions["saliency"])[0][mask == 0] == 0).all())
    with pytest.warns(UserWarning, match=r"Explained: 'input_ids'. .*'attention_mask' \(int64\)"):
        report = explain(bert, Probe({"input_ids": ids, "attention_mask": mask}), ["FeatureAblation"], [])
    torch.testing.assert_close(report.outputs, bert(ids, mask)["logits"])
    layer = {"ig": m.LayerIntegratedGradients("words")}
    report = explain(bert, Probe(ids, forward_args=(mask,)), layer, [])
    with pytest.warns(UserWarning, match="Explained: 'input_ids'"):
        again = explain(bert, Probe({"attention_mask": mask, "input_ids": ids}), layer, [])
    torch.testing.assert_close(again.attributions["ig"], report.attributions["ig"])


@pytest.mark.parametrize(
    ("form", "image"),
    [
        (lambda b: (b["image"], ["cat"] * len(b["image"])), lambda b: b[0]),
        (lambda b: {"image": b["image"], "category": b["label"]}, lambda b: b["image"]),
        (lambda b: (b["image"],), lambda b: b[0]),
    ],
    ids=["texts", "another name", "none"],
)
@pytest.mark.filterwarnings("ignore:Explained. 'image'. Left out.*'category'")
def test_labels_that_cannot_be_read_are_said_to_be_missing(form: Any, image: Any, tmp_path: Path) -> None:
    module = Unlabeled(lambda net, b: net(image(b)), lambda b: torch.zeros(len(image(b)), dtype=torch.long))
    with pytest.warns(UserWarning, match="no labels can be read in the batches"):
        trainer(tmp_path, watch := monitor(metrics=[])).fit(module, collated(form), collated(form))
    report = report_of(watch)
    assert torch.equal(report.targets, report.predictions)


class Unlabeled(Module):
    def forward(self, image: Tensor) -> Tensor:
        return self.net(image, 0 * image)


def test_labels_made_in_inference_mode_are_explained() -> None:
    net = Scaled()
    with torch.inference_mode():
        probe = Probe(torch.rand(4, 3), torch.arange(4) % 2, forward_args=(torch.ones(4),))
        report = explain(net, probe, ["InputXGradient", "FeatureAblation"], ["Infidelity"])
    assert report.scores["infidelity"]["input_x_gradient"].isfinite().all()


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x) * scale[:, None]


class Lazy(Module):
    def __init__(self) -> None:
        super().__init__(lambda net, b: net(b[0]), lambda b: b[1])
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(8, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 1}, {"at_start": True}], ids=str)
def test_lazy_layers_are_explained_after_the_first_batch_and_drawn_as_without(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    def run(*callbacks: pl.Callback) -> Module:
        torch.manual_seed(0)
        module = Lazy()
        form = lambda b: (b["image"], b["label"])  # noqa: E731
        trainer(tmp_path, *callbacks).fit(module, collated(form), collated(form))
        return module

    watch = monitor(metrics=[], **arguments)
    with pytest.warns(UserWarning, match="lazy layers without weights yet.*after the first training batch"):
        module = run(watch)
    assert report_of(watch).step == 2
    assert all(map(torch.equal, weights(module), weights(run())))


class Lengths(IterableDataset[Any]):
    """A stream of batches that are padded to their own longest sample."""

    def __iter__(self) -> Any:
        for length in (5, 5, 7, 5):
            yield torch.rand(3, length), torch.arange(3)


def test_a_stream_that_is_padded_to_different_lengths_gives_the_first_batches_that_are_alike() -> None:
    with (
        pytest.warns(UserWarning, match="only the 6 samples of the first"),
        pytest.warns(UserWarning, match="a stream"),
    ):
        probe = collect(DataLoader(Lengths(), batch_size=None), ProbeSelection(count=8))
    assert probe.inputs.shape == (6, 5)


def test_detection_batches_are_refused_with_the_fix(tmp_path: Path) -> None:
    class Boxes(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, 8, 8 + index % 2), {"boxes": torch.rand(index % 3, 4)}

    loader = DataLoader(Boxes(), batch_size=4, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    module = Unlabeled(lambda net, b: net(torch.stack([x[0, :4, :6] for x in b[0]])), lambda b: torch.zeros(4).long())
    with pytest.raises(
        TypeError, match=r"starts with 4 tensors of the shapes \(3, 8, 8\).*one for each sample.*Give batch_fn="
    ):
        trainer(tmp_path, monitor()).fit(module, loader, loader)


def test_from_config_binds_by_name_too(tmp_path: Path) -> None:
    config = {"methods": ["Saliency"], "metrics": [], "probe": {"count": 4}}
    watch = ExplanationMonitor.from_config(config, sinks="auto")
    module = ByName(FORMS["a mapping in another order"][2], lambda b: b["label"])
    trainer(tmp_path, watch).fit(module, collated(without_types), collated(without_types))
    assert watch.probe is not None
    assert watch.probe.parameters == (("image",), ("reference",))
    resumed = ExplanationMonitor.from_config(config)
    resumed.load_state_dict(watch.state_dict())
    assert resumed.probe is not None
    assert (resumed.probe.parameters, resumed.probe.meta) == (watch.probe.parameters, watch.probe.meta)


def test_samples_that_version_0_1_bound_by_position_are_bound_by_name_after_a_resume(tmp_path: Path) -> None:
    module = ByName(FORMS["a mapping in another order"][2], lambda b: b["label"])
    saved = trainer(tmp_path, watch := monitor(metrics=[]))
    saved.fit(module, collated(without_types), collated(without_types))
    saved.save_checkpoint(tmp_path / "old.ckpt")
    content = torch.load(tmp_path / "old.ckpt", weights_only=True)
    probe = content["callbacks"][watch.state_key]["probe"]
    probe["inputs"] = probe["inputs"][::-1]
    for new in ("parameters", "meta", "stds"):
        probe.pop(new, None)
    content["callbacks"][watch.state_key]["fingerprint"] = fingerprint(Probe(**probe))
    torch.save(content, tmp_path / "old.ckpt")
    resumed = monitor(metrics=[])
    with pytest.warns(UserWarning, match=r"bound by position, as version 0.1 did.*bound by name"):
        trainer(tmp_path, resumed, max_epochs=2).fit(
            module, collated(without_types), collated(without_types), ckpt_path=tmp_path / "old.ckpt"
        )
    assert resumed.probe is not None
    assert resumed.probe.parameters == (("image",), ("reference",))
    assert report_of(resumed).ids.tolist() == report_of(watch).ids.tolist()


def test_a_given_probe_of_names_is_bound_in_the_order_of_forward(tmp_path: Path) -> None:
    batch = default_collate([Samples()[i] for i in range(4)])
    watch = monitor(metrics=[], probe=Probe(inputs(batch), batch["label"]))
    module = ByName(FORMS["a mapping in another order"][2], lambda b: b["label"])
    trainer(tmp_path, watch).fit(module, collated(without_types), collated(without_types))
    torch.testing.assert_close(report_of(watch).outputs, module(batch["image"], batch["reference"]))
    other = ByName(swapped, lambda b: b["label"])
    trainer(tmp_path, knows := monitor(metrics=[], probe=Probe((batch["reference"], batch["image"])))).fit(
        other, collated(without_types), collated(without_types)
    )
    torch.testing.assert_close(report_of(knows).outputs, swapped(other, batch))
    wrong = monitor(metrics=[], probe=Probe({"picture": batch["image"], "reference": batch["reference"]}))
    with pytest.raises(TypeError, match=r"does not fit forward\(image, reference, types=None\).*'picture'"):
        trainer(tmp_path, wrong).fit(module, collated(without_types), collated(without_types))
