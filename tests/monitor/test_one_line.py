"""One line, ``Trainer(callbacks=[ExplanationMonitor()])``, over unlike models and batches: no training stops or differs.

Run with ``-s`` to read what was explained of each, and what was left out and why.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_explain import ExplanationMonitor
from training import QUIET, trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::UserWarning")]

N = 4
Step = Callable[[Any, Any], Tensor]


class Task(pl.LightningModule):
    """Trains ``net`` by ``step(module, batch)``, which returns a loss."""

    def __init__(self, net: nn.Module, step: Step) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.step(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Passing(Task):
    """Passes on what it gets."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.net(*inputs, **named)


class OfTokens(Task):
    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        return self.net(input_ids, attention_mask) if labels is None else self.net(input_ids, attention_mask, labels)


class Items(Dataset[Any]):
    """``make(i)`` for each index."""

    def __init__(self, make: Callable[[int], Any], count: int = N) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(index)
            return self.make(index)


class Endless(IterableDataset[Any]):
    """The same items, of which nobody knows how many there are."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.items = Items(make)

    def __iter__(self) -> Iterator[Any]:
        return map(self.items.__getitem__, range(N))


def batches(make: Callable[[int], Any], **arguments: Any) -> Any:
    return DataLoader(Items(make), batch_size=2, **arguments)


def image(i: int) -> Tensor:
    return torch.rand(1, 8, 8)


def pair(i: int) -> Any:
    return image(i), i % 3


def conv(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, outputs))


def mlp(inputs: int = 5, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


def classify(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def regress(module: Any, batch: Any) -> Tensor:
    return F.mse_loss(module(batch[0]), batch[1])


CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """A case: ``module``; ``train``, a loader; ``val``, the same unless given; ``run``, arguments of the Trainer."""
    CASES[make.__name__.replace("_", " ")] = make
    return make


def plain(
    net: nn.Module, step: Step, make: Callable[[int], Any], kind: type[Task] = Task, **more: Any
) -> dict[str, Any]:
    return {"module": kind(net, step), "train": batches(make), **more}


@case
def images_and_labels() -> dict[str, Any]:
    return plain(conv(), classify, pair)


@case
def a_dictionary() -> dict[str, Any]:
    step: Step = lambda m, b: F.cross_entropy(m(b["image"]), b["label"])  # noqa: E731
    return plain(conv(), step, lambda i: {"label": i % 3, "image": image(i), "path": f"{i}.png"})


@case
def a_list_of_inputs() -> dict[str, Any]:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = mlp(5), mlp(4)

        def forward(self, inputs: list[Tensor]) -> Tensor:
            return self.a(inputs[0]) + self.b(inputs[1])

    return plain(Two(), classify, lambda i: ([torch.rand(5), torch.rand(4)], i % 3))


@case
def lazy_layers() -> dict[str, Any]:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    return plain(net, classify, pair)


@case
def no_validation() -> dict[str, Any]:
    return plain(conv(), classify, pair, val=None)


class Detector(nn.Module):
    """Takes images of unlike sizes and their boxes, and returns losses in training, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        found = [self.conv(x).mean((1, 2)) for x in images]
        if self.training:
            losses = [F.mse_loss(f[:4], t["boxes"][0]) for f, t in zip(found, targets, strict=True)]
            return {"loss_box": torch.stack(losses).mean()}
        return [{"boxes": f[None, :4], "scores": f[4:]} for f in found]


@case
def detection() -> dict[str, Any]:
    def step(module: Any, batch: Any) -> Tensor:
        return sum(module(*batch).values()) if module.training else torch.zeros(())  # type: ignore[return-value]

    def make(i: int) -> Any:
        return torch.rand(3, 8 + i, 9), {"boxes": torch.rand(1 + i % 2, 4), "labels": torch.ones(1 + i % 2).long()}

    loader = batches(make, collate_fn=lambda samples: tuple(zip(*samples, strict=True)))
    return {"module": Passing(Detector(), step), "train": loader}


class Tagger(nn.Module):
    """Token ids and a mask in, classes of each token out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.block = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.block(self.embed(input_ids), src_key_padding_mask=attention_mask == 0))


@case
def tokens() -> dict[str, Any]:
    def make(i: int) -> Any:
        ids = torch.randint(1, 20, (6,))
        return {"input_ids": ids, "attention_mask": torch.arange(6) < 4 + i % 3, "labels": ids % 4}

    def step(module: Any, batch: Any) -> Tensor:
        out = module(batch["input_ids"], batch["attention_mask"])
        return F.cross_entropy(out.transpose(1, 2), batch["labels"])

    return plain(Tagger(), step, make, OfTokens)


class GAN(pl.LightningModule):
    """Two networks, two optimizers, manual optimization, and a forward that draws images from noise."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(6, 64), nn.Unflatten(1, (1, 8, 8)))
        self.critic = conv(1)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        z = torch.randn(len(batch[0]), 6)
        g, d = self.optimizers()  # type: ignore[attr-defined]
        for optimizer, loss in (
            (d, lambda: self.critic(self(z).detach()).mean() - self.critic(batch[0]).mean()),
            (g, lambda: -self.critic(self(z)).mean()),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), 0.01) for net in (self.generator, self.critic)]


@case
def a_GAN() -> dict[str, Any]:  # noqa: N802
    return {"module": GAN(), "train": batches(pair), "val": None}


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "size": self.size(hidden)}


@case
def several_tasks() -> dict[str, Any]:
    def step(module: Any, batch: Any) -> Tensor:
        found, (kind, size) = module(batch["x"]), (batch["kind"], batch["size"])
        return F.cross_entropy(found["kind"], kind) + F.mse_loss(found["size"], size)

    return plain(Heads(), step, lambda i: {"x": torch.rand(5), "kind": i % 3, "size": torch.rand(1)})


@case
def an_autoencoder() -> dict[str, Any]:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    return plain(net, lambda m, x: F.mse_loss(m(x), x), image)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(5, 4), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x).chunk(2, 1)
        return self.decode(mean + torch.randn_like(mean) * (log_var / 2).exp()), mean, log_var


@case
def a_variational_autoencoder() -> dict[str, Any]:
    def step(module: Any, x: Tensor) -> Tensor:
        found, mean, log_var = module(x)
        return F.mse_loss(found, x) + (mean.square() + log_var.exp() - log_var).mean()

    return plain(VAE(), step, lambda i: torch.rand(5))


@dataclasses.dataclass
class Patient:
    """A batch."""

    scan: Tensor
    age: Tensor
    label: Tensor

    def to(self, device: Any, **options: Any) -> Patient:
        return self


@case
def dataclass_batches() -> dict[str, Any]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.age = conv(), nn.Linear(1, 3)

        def forward(self, scan: Tensor, age: Tensor) -> Tensor:
            return self.conv(scan) + self.age(age)

    loader = batches(
        lambda i: (image(i), torch.rand(1), i % 3),
        collate_fn=lambda rows: Patient(
            torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]), torch.tensor([r[2] for r in rows])
        ),
    )

    class Clinic(Task):
        def forward(self, scan: Tensor, age: Tensor) -> Tensor:
            return self.net(scan, age)

    step: Step = lambda m, b: F.cross_entropy(m(b.scan, b.age), b.label)  # noqa: E731
    return {"module": Clinic(Net(), step), "train": loader}


class Output(dict):  # type: ignore[type-arg]
    """A dictionary whose entries are attributes, too."""

    __getattr__ = dict.__getitem__


class Hugging(Tagger):
    """``forward(**batch)`` with labels returns the loss, as in transformers."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:  # type: ignore[override]
        logits = super().forward(input_ids, attention_mask)[:, 0]
        return Output(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


@case
def forward_by_keywords() -> dict[str, Any]:
    def make(i: int) -> Any:
        return {"input_ids": torch.randint(1, 20, (6,)), "attention_mask": torch.ones(6), "labels": i % 4}

    return plain(Hugging(), lambda m, b: m(**b).loss, make, OfTokens)


@case
def regression() -> dict[str, Any]:
    return plain(mlp(outputs=1), regress, lambda i: (torch.rand(5), torch.rand(1)))


@case
def regression_without_a_dimension() -> dict[str, Any]:
    net = nn.Sequential(mlp(outputs=1), nn.Flatten(0))
    return plain(net, regress, lambda i: (torch.rand(5), torch.rand(())))


@case
def several_labels() -> dict[str, Any]:
    step: Step = lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1])  # noqa: E731
    return plain(conv(), step, lambda i: (image(i), (torch.rand(3) > 0.5).float()))


@case
def ordered_classes() -> dict[str, Any]:
    def step(module: Any, batch: Any) -> Tensor:
        levels = (batch[1][:, None] > torch.arange(3)).float()
        return F.binary_cross_entropy_with_logits(module(batch[0]), levels)

    return plain(conv(), step, lambda i: (image(i), i % 4))


@case
def segmentation() -> dict[str, Any]:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return plain(net, classify, lambda i: (image(i), (torch.rand(8, 8) > 0.5).long()))


class Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][0])


@case
def a_series() -> dict[str, Any]:
    return plain(Series(), classify, lambda i: (torch.rand(7, 2), i % 3))


class Graph(nn.Module):
    """Nodes of all graphs in one tensor, and to which graph each belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 3)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        nodes = self.lin(batch["nodes"]["x"])
        return torch.zeros(batch["graphs"], 3).index_add(0, batch["nodes"]["graph"], nodes)


@case
def graphs() -> dict[str, Any]:
    def collate(rows: list[Any]) -> Any:
        graph = torch.cat([torch.full((len(x),), i) for i, (x, _) in enumerate(rows)])
        nodes = {"x": torch.cat([x for x, _ in rows]), "graph": graph}
        return {"nodes": nodes, "graphs": len(rows), "y": torch.tensor([y for _, y in rows])}

    loader = batches(lambda i: (torch.rand(2 + i, 5), i % 3), collate_fn=collate)
    return {"module": Task(Graph(), lambda m, b: F.cross_entropy(m(b), b["y"])), "train": loader}


class Bag(nn.Module):
    """Sentences of unlike lengths in, as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 3)

    def forward(self, texts: list[Tensor]) -> Tensor:
        return torch.stack([self.embed(text).mean(0) for text in texts])


@case
def ragged_text() -> dict[str, Any]:
    loader = batches(
        lambda i: (torch.randint(20, (3 + i,)), i % 3),
        collate_fn=lambda rows: ([x for x, _ in rows], torch.tensor([y for _, y in rows])),
    )
    return {"module": Task(Bag(), classify), "train": loader}


@case
def complex_numbers() -> dict[str, Any]:
    net = nn.Linear(5, 3, dtype=torch.complex64)
    return plain(
        net,
        lambda m, b: F.cross_entropy(m(b[0]).abs(), b[1]),
        lambda i: (torch.complex(torch.rand(5), torch.rand(5)), i % 3),
    )


@case
def whole_numbers() -> dict[str, Any]:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float())

    return plain(Whole(), classify, lambda i: (torch.randint(9, (5,)), i % 3))


@case
def a_stream_without_length() -> dict[str, Any]:
    loader = DataLoader(Endless(pair), batch_size=2)
    return {"module": Task(conv(), classify), "train": loader}


@case
def inference_tensors() -> dict[str, Any]:
    def make(i: int) -> Any:
        with torch.inference_mode():
            return image(i), torch.tensor(i % 3)

    def collate(rows: list[Any]) -> Any:
        with torch.inference_mode():
            return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])

    module = Task(conv(), lambda m, b: F.cross_entropy(m(b[0].clone()), b[1].clone()))
    return {"module": module, "train": batches(make, collate_fn=collate)}


class OwnStep(pl.LightningModule):
    """Has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = mlp(outputs=4), nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@case
def no_forward() -> dict[str, Any]:
    return {"module": OwnStep(), "train": batches(lambda i: (torch.rand(5), i % 3)), "val": None}


class Counting(Task):
    """Has a metric of torchmetrics and an average of its weights inside."""

    def __init__(self) -> None:
        super().__init__(conv(), classify)
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.average = copy.deepcopy(self.net)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found = self(batch[0])
        self.accuracy(found, batch[1])
        self.log("accuracy", self.accuracy)
        return F.cross_entropy(found, batch[1])

    def on_train_batch_end(self, *arguments: Any) -> None:
        for mine, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mine.data.lerp_(value.data, 0.1)


@case
def a_metric_and_averages_inside() -> dict[str, Any]:
    return {"module": Counting(), "train": batches(pair)}


@case
def batch_statistics_and_dropout() -> dict[str, Any]:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    return plain(net, classify, pair)


@case
def a_compiled_model() -> dict[str, Any]:
    return plain(torch.compile(conv(), backend="eager"), classify, pair)  # type: ignore[arg-type]


@case
def several_validation_loaders() -> dict[str, Any]:
    return plain(conv(), classify, pair, val=[batches(pair), batches(pair)])


@case
def contrastive_pairs() -> dict[str, Any]:
    def step(module: Any, batch: Any) -> Tensor:
        a, b = module(batch[0]), module(batch[1])
        return F.cross_entropy(a @ b.T, torch.arange(len(a)))

    return plain(conv(), step, lambda i: (image(i), image(i)))


@case
def text_in_strings() -> dict[str, Any]:
    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.EmbeddingBag(128, 3)

        def forward(self, texts: list[str]) -> Tensor:
            return torch.cat([self.embed(torch.tensor([[ord(c) for c in text]])) for text in texts])

    return plain(Letters(), classify, lambda i: ("word" * (1 + i % 2), i % 3))


@case
def half_precision() -> dict[str, Any]:
    return plain(conv(), classify, pair, run={"precision": "bf16-mixed"})


@case
def a_loss_as_output() -> dict[str, Any]:
    class Lossy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), y)

    return plain(Lossy(), lambda m, b: m(*b), lambda i: (torch.rand(5), i % 3), Passing)


def trained(make: Callable[[], dict[str, Any]], root: Path, *callbacks: pl.Callback) -> dict[str, Tensor]:
    """The weights at the end of one epoch of four steps."""
    torch.manual_seed(0)
    given = make()
    run = trainer(root, *callbacks, **{"max_epochs": 1, **given.get("run", {})})
    run.fit(given["module"], given["train"], given.get("val", given["train"]))
    assert run.current_epoch == 1
    return {name: value.detach().clone() for name, value in given["module"].state_dict().items()}


DEFAULTS = ("saliency", "ig", "cam", "infidelity", "sensitivity_max")


def left_out(watch: ExplanationMonitor) -> list[str]:
    """What a report of an image classifier has, and this one has not; all of it, if there is no report.

    Text and tables have their own methods by default.
    """
    report = watch.last_report
    found = set() if report is None else {*(name.partition("@")[0] for name in report.attributions), *report.scores}
    if report is not None and report.run is not None and {"Text", "Tabular"}.intersection(report.run.modalities):
        found |= {"saliency", "cam"}
    return [name for name in DEFAULTS if name not in found]


@pytest.mark.parametrize("name", CASES)
def test_one_line_changes_no_training_and_says_what_it_leaves_out(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(CASES[name], tmp_path / "alone")
    watch = ExplanationMonitor()
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        weights = trained(CASES[name], tmp_path / "watched", watch)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
    told = [str(w.message) for w in seen] + [record.getMessage() for record in caplog.records]
    gone = left_out(watch)
    if watch.last_report is not None and watch.last_report.run is not None:
        kinds = ", ".join(watch.last_report.run.modalities)
        assert any(f"treats the input as {kinds}" in line for line in told)
    lines = [line for line in told if "left out" in line or "nothing is explained" in line or "explained" in line]
    print(f"\n{name}: left out: {', '.join(gone) or 'nothing'}")
    for line in lines:
        print(f"    {line[:300]}")
    nothing = watch.last_report is None
    said = [line for line in told if "nothing is explained" in line] if nothing else told
    for one in gone if not nothing else ():
        assert any(f"{one!r}" in line and "left out" in line for line in said), one
    assert said if nothing else True
