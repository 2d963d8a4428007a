"""Pictures of segmentations: what is explained, predicted and labelled can be told apart, and what the title says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_explain import Probe, Report, draw, explain, load_reports
from lightning_explain import targets as t
from lightning_explain.core.report import Picture
from lightning_explain.render.boxes import EXPLAINED, LABELLED, drawn
from lightning_explain.render.captions import captions
from lightning_explain.render.composite import composite
from lightning_explain.render.figure import figure_of
from lightning_explain.render.history import PictureHistory
from lightning_explain.render.regions import EDGE_COLOR, LABEL_COLOR, OUTLINE_COLOR, contoured, marked
from lightning_explain.store.report_files import save_report

NAMES = ["none", "road", "car"]


class Fixed(nn.Module):
    """Predicts class 1 in a square and class 2 in another, whatever the image."""

    def __init__(self, at: int = 8) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(3, 32, 32))
        with torch.no_grad():
            self.scores[0] += 1
            self.scores[1, at : at + 10, 8:18], self.scores[2, 20:24, 20:30] = 3, 3

    def forward(self, x: Tensor) -> Tensor:
        return self.scores * (1 + x.mean(1, keepdim=True))


def labels(at: int = 10) -> Tensor:
    found = torch.zeros(2, 32, 32, dtype=torch.long)
    found[:, at : at + 10, 8:18] = 1
    return found


def report(net: nn.Module, labels: Tensor | None, **arguments: object) -> Report:
    probe = Probe(torch.full((2, 3, 32, 32), 0.4), labels, class_names=NAMES)
    found = explain(net, probe, ["InputXGradient"], [], **arguments)  # type: ignore[arg-type]
    return replace(found, probe=probe, epoch=3)


def lines(picture: Picture, color: tuple[int, int, int]) -> list[int]:
    """The rows with a line of this color, of at least 15 pixels: letters have edges of any gray, too."""
    same = (picture == color).all(-1)
    return np.flatnonzero(np.lib.stride_tricks.sliding_window_view(same, 15, 1).all(-1).any(1)).tolist()


def test_lines_of_prediction_and_label_are_thin_and_where_they_are_and_nothing_is_filled() -> None:
    gray = np.full((1, 32, 32, 3), 100, dtype=np.uint8)
    regions = torch.zeros(1, 32, 32, dtype=torch.uint8)
    regions[0, 8:20, 8:20] |= 1 + 2
    regions[0, 6:16, 8:20] |= 4
    found = marked(gray, regions)[0]
    assert (found[25:, 25:] == 100).all()
    assert (found[9:15, 9:19] == 100).all(), "the object keeps its color"
    assert tuple(found[20, 12]) == tuple(found[12, 20]) == OUTLINE_COLOR, "outside of the prediction"
    assert tuple(found[21, 12]) == tuple(found[12, 21]) == EDGE_COLOR, "legible on white, too"
    assert tuple(found[6, 12]) == tuple(found[15, 12]) == tuple(found[8, 8]) == LABEL_COLOR, "inside of the label"
    assert {tuple(color) for color in found.reshape(-1, 3)} == {OUTLINE_COLOR, EDGE_COLOR, LABEL_COLOR, (100, 100, 100)}
    assert (gray == 100).all(), "the given images are not changed"
    thin = contoured(gray, regions)[0]
    assert tuple(thin[20, 12]) == OUTLINE_COLOR
    assert (thin[12, 12] == 100).all()
    assert (thin[5, 12] == 100).all()
    assert (thin[:, :, 1] != LABEL_COLOR[1]).all()
    for line in (OUTLINE_COLOR, EDGE_COLOR):
        assert np.ptp(line) == 0, "gray: on a map in orange and blue it cannot be taken for a place of the map"


def test_regions_of_another_size_are_drawn_at_that_of_the_image() -> None:
    regions = torch.zeros(1, 4, 4, dtype=torch.uint8)
    regions[0, 1, 1] = 2
    line = (marked(np.zeros((1, 32, 32, 3), dtype=np.uint8), regions)[0] == OUTLINE_COLOR).all(-1)
    rows = np.flatnonzero(line.any(1))
    assert (rows[0], rows[-1]) == (7, 16)


def test_pages_composites_and_single_samples_show_label_and_prediction() -> None:
    found = report(Fixed(), labels())
    assert found.probe is not None
    pages = figure_of(found, found.probe).pictures()
    for page in (pages["overview"], pages["input_x_gradient"], composite(found, found.probe)["input_x_gradient"]):
        assert len(lines(page, LABEL_COLOR)) >= 2
        assert len(lines(page, OUTLINE_COLOR)) >= 4, "on image and overlay"
    unlabelled = report(Fixed(), None, target=t.Pixels())
    page = draw(unlabelled, "overview")
    assert not lines(page, LABEL_COLOR)
    assert len(lines(page, OUTLINE_COLOR)) >= 2


def test_maps_of_earlier_epochs_have_no_line_of_this_one() -> None:
    first, now = report(Fixed(), labels()), report(Fixed(4), labels())
    assert now.probe is not None
    past = PictureHistory().followed_by(figure_of(first, now.probe).snapshot, now.fingerprint)
    page = figure_of(now, now.probe).pictures(past)["history/input_x_gradient"]
    rows = lines(page, OUTLINE_COLOR)
    assert rows[0] > page.shape[0] * 0.6, "in the last row alone"


def test_a_stored_report_is_drawn_as_it_was(tmp_path: Path) -> None:
    found = report(Fixed(), labels())
    save_report(replace(found, run=None, probe=None), tmp_path)
    (stored,) = load_reports(tmp_path)
    for name in ("overview", "input_x_gradient"):
        assert np.array_equal(draw(replace(stored, probe=found.probe), name), draw(found, name))


def test_titles_say_the_class_how_many_pixels_and_how_well_they_fit() -> None:
    good, bad = (
        captions(found, found.probe, NAMES, 1)[0]
        for found in (report(Fixed(), labels(10)), report(Fixed(), labels(16)))
    )
    assert good.lines[:2] == ("class 1 (road), 100 pixels (10%)", "IoU 67%")
    assert (good.wrong, bad.wrong) == (False, True)
    assert (good.short.label, good.short.predicted, good.short.share) == ("road", "", "100 px")
    assert bad.lines[1] == "IoU 11%, mostly predicted as none"
    assert bad.short.predicted == "none"
    elsewhere = report(Fixed(), labels(), target=t.Pixels(2))
    (only,) = captions(elsewhere, elsewhere.probe, NAMES, 1)
    assert only.lines[0] == "class 2 (car), 40 pixels (4%)"
    unlabelled = captions(report(Fixed(), None, target=t.Pixels()), None, NAMES, 1)[0]
    assert unlabelled.lines[0] == "class 1 (road), 100 pixels (10%)"
    assert not any("IoU" in line for line in unlabelled.lines)


def test_a_detected_box_in_the_place_of_its_label_hides_it_not() -> None:
    image, box = np.zeros((1, 40, 40, 3), dtype=np.uint8), torch.tensor([[[5.0, 5.0, 35.0, 35.0]]])
    both = drawn(image, [(box, LABELLED), (box, EXPLAINED)], (40, 40))
    for color in (LABELLED, EXPLAINED):
        assert (both == color).all(-1).sum() >= 50
    assert (drawn(image, [(box, LABELLED)], (40, 40)) == LABELLED).all(-1).sum() == 2 * 30 * 4 - 16
