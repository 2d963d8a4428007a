"""A probe names its samples, also by the name that the ids had in version 0.1."""

from __future__ import annotations

import torch

from lightning_explain import Probe


def test_row_ids_is_the_alias_of_sample_ids() -> None:
    probe = Probe(torch.zeros(2, 3), ids=torch.tensor([7, 9]))
    assert probe.row_ids is probe.sample_ids
    assert probe.row_ids.tolist() == [7, 9]


def test_without_ids_the_samples_are_numbered() -> None:
    assert Probe(torch.zeros(3, 2)).row_ids.tolist() == [0, 1, 2]
