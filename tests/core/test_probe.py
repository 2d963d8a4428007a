"""A probe names its samples, also by the name that the ids had in version 0.1."""

from __future__ import annotations

import pytest
import torch

from lightning_explain import Probe


def test_row_ids_is_the_alias_of_sample_ids() -> None:
    probe = Probe(torch.zeros(2, 3), ids=torch.tensor([7, 9]))
    assert probe.row_ids is probe.sample_ids
    assert probe.row_ids.tolist() == [7, 9]


def test_without_ids_the_samples_are_numbered() -> None:
    assert Probe(torch.zeros(3, 2)).row_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_numbers_that_torch_hardly_computes_with_are_refused_with_the_fix(dtype: torch.dtype) -> None:
    with pytest.raises(
        TypeError, match=rf"inputs=...\) has {dtype}.*batch_fn=lambda batch: \(batch\[0\].float\(\), batch\[1\]\)"
    ):
        Probe(torch.zeros(2, 1, 4, 4, dtype=dtype))
