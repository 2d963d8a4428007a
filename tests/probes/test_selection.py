"""Laws of choosing and reading the fixed samples, on real loaders."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from lightning_explain.core.probe import Probe
from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.serialization import fingerprint, probe_state
from lightning_explain.probes.selection import ProbeSelection, collect

N = 100
X = torch.arange(N * 2.0).reshape(N, 2)
Y = torch.arange(N) // 25  # sorted: the first 25 samples are of one class
SORTED = TensorDataset(X, Y)
FOUR = ProbeSelection(count=4)


def ids(probe: Probe) -> list[int]:
    return probe.sample_ids.tolist()


def numbers() -> list[float]:
    """The next number of each global generator, which stays where it is."""
    with preserved_random_state():
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from every global generator and one of its own; sample 13 fails if it is asked to."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.own = np.random.default_rng(0)
        self.reads = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = torch.rand(2) + random.random() + np.random.rand()
        if self.fail and index == 13:
            raise RuntimeError("sample 13 is broken")
        return X[index] + noise + self.own.random(), Y[index]


class Mappings(Dataset[dict[str, Any]]):
    """Samples as mappings; their labels can be found only by reading them."""

    def __init__(self, labels: Any = Y, size: int = N) -> None:
        self.given = labels
        self.size = size
        self.reads = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        sample = {"image": X[index % N], "path": f"{index}.png"}
        return sample if self.given is None else {**sample, "label": self.given[index % N]}


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, length: int = N) -> None:
        self.length = length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((X[i] + 0 * torch.rand(2), Y[i]) for i in range(self.length))


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream of whole batches of three."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((X[i : i + 3], Y[i : i + 3]) for i in range(0, N, 3))


class Labeled(Dataset[tuple[Tensor, str]]):
    """Labels only in an attribute."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return X[index], "text"


class Counted(int):
    """A whole number that counts how often it is compared."""

    compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other


# -- the selection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ValueError, r"ProbeSelection\(count=0\); give a whole number of at least 1"),
        ({"count": 2.0}, TypeError, r"count=2\.0\); give a whole number"),
        ({"count": True}, TypeError, r"count=True\); give a whole number"),
        ({"count": "16"}, TypeError, r"count='16'\); give a whole number"),
        ({"seed": -1}, ValueError, r"seed=-1\); give a whole number of at least 0"),
        ({"dataloader_idx": None}, TypeError, "dataloader_idx=None"),
        ({"source": "valid"}, ValueError, "source='valid'.*give one of 'val', 'train', 'test'"),
        ({"per_class": 1}, TypeError, "per_class=1.*give True or False"),
        ({"indices": 3}, TypeError, "indices=3.*give a list of whole numbers"),
        ({"indices": "123"}, TypeError, "indices='123'"),
        ({"indices": [1.5]}, TypeError, r"indices\[0\]=1\.5\); give a whole number"),
        ({"indices": [True]}, TypeError, r"indices\[0\]=True"),
        ({"indices": [-1]}, ValueError, r"indices\[0\]=-1\); give a whole number of at least 0"),
        ({"indices": []}, ValueError, "is empty"),
        ({"indices": [3, 1, 3, 2, 2]}, ValueError, r"has \[2, 3\] twice"),
        ({"indices": [1], "per_class": True}, ValueError, "exclude each other"),
    ],
)
def test_a_selection_names_the_argument_that_is_wrong(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ProbeSelection(**arguments)


@pytest.mark.parametrize("step", [1, 2**20])
def test_a_long_list_of_indices_is_read_in_linear_time(step: int) -> None:
    count, Counted.compared = 2_000, 0
    selection = ProbeSelection(indices=[Counted(i * step) for i in range(count)])
    assert Counted.compared <= count
    assert selection.indices == tuple(range(0, count * step, step))
    # Plain ints, because a checkpoint holds the selection and is loaded with weights_only=True.
    assert set(map(type, selection.indices or ())) == {int}


@pytest.mark.parametrize("given", [[3, 1], (3, 1), torch.tensor([3, 1]), np.array([3, 1]), [np.int64(3), 1]])
def test_indices_become_a_tuple_of_plain_integers(given: Any) -> None:
    selection = ProbeSelection(indices=given)
    assert selection == ProbeSelection(indices=(3, 1))
    assert [type(i) for i in selection.indices or ()] == [int, int]
    assert hash(selection) == hash(ProbeSelection(indices=range(3, 0, -2)))


def test_a_selection_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError, match="count"):
        FOUR.count = 5  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_selection_can_be_written_in_yaml() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--probe", type=ProbeSelection)
    arguments = ["--probe.indices=[4, 2]", "--probe.source=train", "--probe.seed=7"]
    found = parser.instantiate_classes(parser.parse_args(arguments)).probe
    assert found == ProbeSelection(indices=(4, 2), source="train", seed=7)


# -- which samples ----------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_dataset_under_their_ids() -> None:
    probe = collect(DataLoader(SORTED, 7), FOUR)
    assert torch.equal(probe.inputs, X[ids(probe)])  # type: ignore[arg-type]
    assert torch.equal(probe.targets, Y[ids(probe)])  # type: ignore[arg-type]


def test_a_loader_that_shuffles_or_batches_otherwise_gives_the_same_samples() -> None:
    sampler: Any = torch.utils.data.DistributedSampler(SORTED, num_replicas=2, rank=1)
    loaders = [
        DataLoader(SORTED),
        DataLoader(SORTED, 7, shuffle=True),
        DataLoader(SORTED, 64, sampler=sampler, drop_last=True),
        DataLoader(SORTED, batch_sampler=BatchSampler(SequentialSampler(SORTED), 3, drop_last=False)),
        DataLoader(SORTED, batch_size=None),
        DataLoader(SORTED, batch_size=None, sampler=BatchSampler(SequentialSampler(SORTED), 3, drop_last=False)),
    ]
    assert len({fingerprint(collect(loader, FOUR)) for loader in loaders}) == 1


def test_samples_are_spread_by_the_seed_and_sorted() -> None:
    found = ids(collect(DataLoader(SORTED), ProbeSelection(count=20)))
    assert found == sorted(set(found))
    assert len({Y[i].item() for i in found}) == 4
    assert ids(collect(DataLoader(SORTED), ProbeSelection(count=20, seed=1))) != found


def test_indices_are_taken_exactly_and_in_their_order() -> None:
    probe = collect(DataLoader(SORTED, shuffle=True), ProbeSelection(count=2, indices=[99, 0, 50]))
    assert ids(probe) == [99, 0, 50]
    assert torch.equal(probe.inputs, X[[99, 0, 50]])  # type: ignore[arg-type]


def test_indices_beyond_the_dataset_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"has \[100, 300\].*val loader \(TensorDataset\): 0 to 99"):
        collect(DataLoader(SORTED), ProbeSelection(indices=[100, 3, 300]))


def test_fewer_samples_than_asked_for_are_told() -> None:
    with pytest.warns(UserWarning, match="count=16.*train loader has 3 samples; 3 of 16"):
        probe = collect(DataLoader(Subset(SORTED, [5, 6, 7])), ProbeSelection(source="train"))
    assert ids(probe) == [0, 1, 2]


def test_no_samples_at_all_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"source='test'.*finds no samples.*\(Subset\) is empty"):
        collect(DataLoader(Subset(SORTED, [])), ProbeSelection(source="test"))


# -- classes -------------------------------------------------------------------------------------------------------

BY_CLASS = ProbeSelection(count=8, per_class=True)


@pytest.mark.parametrize(
    "dataset",
    [
        SORTED,
        Subset(Subset(SORTED, range(10, 95)), list(range(80, 0, -1))),
        TensorDataset(X, Y.float()[:, None]),
        Mappings(),
        Mappings(Y.float().tolist()),
        Labeled(targets=Y),
        Labeled(targets=Y.tolist()),
        Labeled(labels=Y.numpy().astype(np.uint16)),
        Labeled(targets=["file"] * N, labels=Y[:, None]),
        torch.utils.data.ConcatDataset([Subset(SORTED, range(50)), Subset(SORTED, range(50, 100))]),
    ],
    ids=lambda d: type(d).__name__,
)
def test_classes_are_balanced_wherever_the_labels_are(dataset: Any) -> None:
    loader = DataLoader(dataset, shuffle=True)
    probe = collect(loader, BY_CLASS)
    inputs = probe.inputs
    assert isinstance(inputs, Tensor)
    classes = Y[(inputs[:, 0] / 2).long()]
    assert torch.bincount(classes).tolist() == [2, 2, 2, 2]
    assert ids(probe) == sorted(ids(probe)) == ids(collect(DataLoader(dataset, 3), BY_CLASS))


def test_known_labels_are_not_read_from_samples() -> None:
    dataset = Mappings()
    dataset.targets = Y  # type: ignore[attr-defined]
    collect(DataLoader(dataset), BY_CLASS)
    assert dataset.reads == 8 + N  # and once for the standard deviations


def test_unknown_labels_are_never_looked_for_in_the_whole_dataset() -> None:
    dataset = Mappings(size=10_000)
    collect(DataLoader(dataset), BY_CLASS)
    assert dataset.reads == 1008 + 1024  # and those for the standard deviations


def test_labels_are_read_until_there_are_as_many_classes_as_samples() -> None:
    dataset = Mappings(labels=torch.arange(N))
    collect(DataLoader(dataset), BY_CLASS)
    assert dataset.reads == 16 + N  # and once for the standard deviations


def test_a_class_with_few_samples_leaves_its_place_to_others() -> None:
    labels = torch.tensor([1] + [0] * 99)
    probe = collect(DataLoader(TensorDataset(X, labels)), BY_CLASS)
    assert torch.bincount(probe.targets).tolist() == [7, 1]  # type: ignore[arg-type]


def test_more_classes_than_samples_are_chosen_by_the_seed() -> None:
    loader = DataLoader(TensorDataset(X, torch.arange(N)))
    assert ids(collect(loader, BY_CLASS)) != list(range(8))
    assert ids(collect(loader, BY_CLASS)) != ids(collect(loader, ProbeSelection(count=8, per_class=True, seed=1)))


def test_labels_may_come_from_the_users_function() -> None:
    probe = collect(DataLoader(Mappings(None)), BY_CLASS, lambda b: (b["image"], (b["image"][:, 0] / 50).long()))
    assert torch.bincount(probe.targets).tolist() == [2, 2, 2, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(X),
        TensorDataset(X, X),
        TensorDataset(X, X[:, 0] / 3),
        TensorDataset(X, X[:, 0] * float("nan")),
        Mappings(None),
    ],
)
def test_no_labels_are_an_error_with_a_way_out(dataset: Any) -> None:
    with pytest.raises(ValueError, match=r"per_class=True.*no labels.*indices=.*batch_fn"):
        collect(DataLoader(dataset), BY_CLASS)


# -- how they are read ---------------------------------------------------------------------------------------------


def test_the_loaders_own_collate_function_is_used() -> None:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in samples]) * 2, "y": torch.stack([y for _, y in samples])}

    probe = collect(DataLoader(SORTED, 5, collate_fn=collate), FOUR)
    assert torch.equal(probe.inputs, 2 * X[ids(probe)])  # type: ignore[arg-type]


def test_the_collate_function_of_a_loader_that_does_not_batch_takes_one_sample() -> None:
    loader = DataLoader(SORTED, batch_size=None, collate_fn=lambda sample: (sample[0].numpy() * 2, sample[1]))
    probe = collect(loader, FOUR)
    assert torch.equal(probe.inputs, 2 * X[ids(probe)])  # type: ignore[arg-type]


def test_samples_are_transferred_once_and_come_to_the_cpu_without_gradients() -> None:
    calls = []

    def transfer(batch: list[Tensor]) -> list[Tensor]:
        calls.append(batch)
        return [(batch[0] + 1).requires_grad_(), batch[1]]

    probe = collect(DataLoader(TensorDataset(X[:, :, None, None], Y)), BY_CLASS, transfer=transfer)
    assert len(calls) == 1
    assert torch.equal(probe.inputs.flatten(1), X[ids(probe)] + 1)  # type: ignore[arg-type]
    assert not probe.inputs.requires_grad  # type: ignore[union-attr]


def test_samples_can_be_chosen_in_inference_mode_and_have_gradients_later() -> None:
    with torch.inference_mode():
        cached = torch.rand(N, 2)
        probe = collect(DataLoader(TensorDataset(cached)), FOUR, lambda batch: (batch[0], None))
    assert isinstance(probe.inputs, Tensor)
    assert not probe.inputs.is_inference()
    probe.inputs.requires_grad_().sum().backward()


def test_samples_are_copies() -> None:
    kept = X.clone()
    probe = collect(DataLoader([kept] * 4, collate_fn=lambda samples: kept[:4]), FOUR)  # type: ignore[arg-type]
    kept.zero_()
    assert probe.inputs.any()  # type: ignore[union-attr]


def test_a_function_of_the_user_keeps_masks_names_and_arguments() -> None:
    def read(batch: list[Tensor]) -> Probe:
        masks = torch.ones(len(batch[0]), 2, 2, dtype=torch.bool)
        return Probe(batch[0], batch[1], masks=masks, class_names=["a", "b"], forward_args=(batch[1], {"k": 1}))

    probe = collect(DataLoader(SORTED), ProbeSelection(indices=[4, 90]), read)
    assert ids(probe) == [4, 90]
    assert probe.masks is not None
    assert list(probe.class_names or ()) == ["a", "b"]
    assert probe.forward_args[1] == {"k": 1}


def test_samples_that_get_lost_on_the_way_are_an_error() -> None:
    loader = DataLoader(SORTED, collate_fn=lambda samples: torch.stack([x for x, _ in samples[1:]]))
    with pytest.raises(ValueError, match="4 samples of the dataset became 3 samples of a batch"):
        collect(loader, FOUR)


def test_a_plain_list_is_a_dataset() -> None:
    samples = [(X[i], int(Y[i])) for i in range(N)]
    assert fingerprint(collect(DataLoader(samples), BY_CLASS)) == fingerprint(  # type: ignore[arg-type]
        collect(DataLoader(samples, shuffle=True), BY_CLASS)  # type: ignore[arg-type]
    )


# -- nothing is disturbed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [False, True])
def test_choosing_moves_no_generator_neither_global_nor_the_datasets_own(per_class: bool) -> None:
    dataset = Augmented()
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(dataset, 8, shuffle=True, generator=generator)
    before = numbers(), dataset.own.bit_generator.state, generator.get_state().tolist()
    collect(loader, ProbeSelection(count=4, per_class=per_class))
    assert (numbers(), dataset.own.bit_generator.state, generator.get_state().tolist()) == before


def test_choosing_moves_no_generator_when_a_sample_fails() -> None:
    dataset = Augmented(fail=True)
    before = numbers(), dataset.own.bit_generator.state
    with pytest.raises(RuntimeError, match="sample 13 is broken"):
        collect(DataLoader(dataset), ProbeSelection(indices=[1, 2, 13, 4]))
    assert (numbers(), dataset.own.bit_generator.state) == before


@pytest.mark.parametrize("part", ["collate_fn", "batch_fn", "transfer"])
def test_no_function_of_the_user_moves_a_generator(part: str) -> None:
    def noisy(batch: Any) -> Any:
        random.random(), np.random.rand(), torch.rand(3)
        return batch

    arguments: dict[str, Any] = {"transfer": noisy} if part == "transfer" else {}
    if part == "batch_fn":
        arguments["batch_fn"] = lambda batch: tuple(noisy(batch))
    collate = torch.utils.data.default_collate
    loader = DataLoader(SORTED, collate_fn=(lambda samples: collate(noisy(samples))) if part == "collate_fn" else None)
    before = numbers()
    collect(loader, FOUR, **arguments)
    assert numbers() == before


def test_random_transforms_start_from_the_seed_of_the_selection() -> None:
    first = collect(DataLoader(Augmented()), FOUR)
    torch.rand(3), np.random.rand(), random.random()
    assert fingerprint(collect(DataLoader(Augmented(), shuffle=True), FOUR)) == fingerprint(first)
    indices = ids(first)
    again, other = (collect(DataLoader(Augmented()), ProbeSelection(indices=indices, seed=s)) for s in (0, 1))
    assert fingerprint(again) == fingerprint(first)
    assert fingerprint(other) != fingerprint(first)


def test_looking_for_labels_does_not_show_in_the_samples() -> None:
    def noisy(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.rand(len(samples), 2), torch.tensor([y for _, y in samples])

    loader: Any = DataLoader([(X[i], int(Y[i])) for i in range(N)], collate_fn=noisy)  # type: ignore[arg-type]
    found = collect(loader, BY_CLASS)
    assert fingerprint(collect(loader, ProbeSelection(indices=ids(found)))) == fingerprint(found)


def test_a_loader_with_workers_gives_the_same_samples_and_leaves_the_dataset_untouched() -> None:
    dataset, before = Augmented(), numbers()
    probe = collect(DataLoader(dataset, 3, shuffle=True, num_workers=2), FOUR)
    assert fingerprint(probe) == fingerprint(collect(DataLoader(Augmented()), FOUR))
    assert dataset.reads == 0
    assert numbers() == before


def _seed_by_rank(worker: int) -> None:
    torch.manual_seed(12345)
    random.seed(12345)
    np.random.seed(12345)


def test_workers_that_seed_themselves_give_the_same_samples() -> None:
    loader = DataLoader(Augmented(), num_workers=2, worker_init_fn=_seed_by_rank)
    assert fingerprint(collect(loader, FOUR)) == fingerprint(collect(DataLoader(Augmented()), FOUR))


# -- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_its_first_samples_and_says_that_it_cannot_be_rewound(workers: int) -> None:
    before = numbers()
    with pytest.warns(UserWarning, match=r"first 5 samples.*\(Stream\) is a stream.*To explain others, give a Probe"):
        probe = collect(DataLoader(Stream(), 2, num_workers=workers), ProbeSelection(count=5))
    assert ids(probe) == [0, 1, 2, 3, 4]
    assert torch.equal(probe.inputs, X[:5])  # type: ignore[arg-type]
    assert torch.equal(probe.targets, Y[:5])  # type: ignore[arg-type]
    assert numbers() == before


@pytest.mark.filterwarnings("ignore:The first:UserWarning")
@pytest.mark.parametrize("loader", [DataLoader(Batches(), batch_size=None), list(DataLoader(SORTED, 3))])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_whole_batches_are_joined_and_cut(loader: Any, count: int) -> None:
    def with_arguments(batch: list[Tensor]) -> Probe:
        return Probe((batch[0], batch[0]), batch[1], forward_args=(batch[1], "mean"), class_names=("a", "b"))

    for batch_fn in (None, with_arguments):
        probe = collect(loader, ProbeSelection(count=count), batch_fn)
        assert ids(probe) == list(range(count))
        assert torch.equal(probe.targets, Y[:count])  # type: ignore[arg-type]
    assert torch.equal(probe.inputs[1], X[:count])
    assert torch.equal(probe.forward_args[0], Y[:count])
    assert probe.forward_args[1] == "mean"
    assert probe.class_names == ("a", "b")


@pytest.mark.filterwarnings("ignore:The first:UserWarning")
def test_a_stream_that_ends_early_is_told() -> None:
    with pytest.warns(UserWarning, match="3 of 4 are explained"):
        assert len(collect(DataLoader(Stream(3)), FOUR)) == 3


@pytest.mark.filterwarnings("ignore:The first:UserWarning")
@pytest.mark.parametrize("loader", [DataLoader(Stream(0)), []])
def test_a_stream_without_samples_is_an_error(loader: Any) -> None:
    with pytest.raises(ValueError, match=r"source='val'.*finds no samples.*stream, and it gave none"):
        collect(loader, FOUR)


@pytest.mark.parametrize("selection", [ProbeSelection(indices=[1]), ProbeSelection(per_class=True)])
def test_a_stream_has_neither_indices_nor_classes(selection: ProbeSelection) -> None:
    with pytest.raises(ValueError, match=r"need a dataset with __getitem__ and __len__.*\(Stream\) is a stream"):
        collect(DataLoader(Stream()), selection)


def test_choosing_from_a_dataset_says_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collect(DataLoader(SORTED), BY_CLASS)
    assert not caught


# -- standard deviations -------------------------------------------------------------------------------------------


def test_standard_deviations_are_those_of_the_dataset_and_stay_with_the_probe() -> None:
    scaled = TensorDataset(torch.stack([X[:, 0] * 1e6 + 1e9, X[:, 1] / 1e6, torch.full((N,), 1e9)], 1).double(), Y)
    for loader in (DataLoader(scaled, 3, shuffle=True), DataLoader(scaled, num_workers=1)):
        probe = collect(loader, FOUR)
        assert torch.allclose(probe.stds[0][0], scaled.tensors[0].std(0), rtol=1e-12)
        assert probe.stds[0][0, 2] == 0
    again = Probe(**probe_state(probe))
    assert torch.equal(again.stds[0], probe.stds[0])
    assert fingerprint(probe) == fingerprint(replace(probe, stds=()))


def test_only_tables_and_series_are_read_for_standard_deviations() -> None:
    dataset = Augmented()
    images = collect(DataLoader(dataset), FOUR, transfer=lambda batch: [batch[0][:, :, None, None], batch[1]])
    assert images.stds == ()
    assert dataset.reads == 4
    tokens = TensorDataset(torch.arange(N)[:, None] + torch.arange(5), Y)
    assert collect(DataLoader(tokens), FOUR, lambda batch: (batch[0], batch[1])).stds == ()


def test_a_sample_that_cannot_be_read_leaves_the_standard_deviations_out() -> None:
    with pytest.warns(UserWarning, match=r"probe's own samples.*sample 13 is broken"):
        assert collect(DataLoader(Augmented(fail=True)), FOUR).stds == ()
