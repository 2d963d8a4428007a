"""What is said of sharded models."""

from __future__ import annotations

import pytest
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from lightning_explain.distributed.fsdp import resumes_otherwise


@pytest.mark.parametrize(
    ("normed", "expected"),
    [(nn.BatchNorm1d(2), True), (nn.LayerNorm(2), False), (nn.BatchNorm1d(2, track_running_stats=False), False)],
    ids=["batch norm", "layer norm", "without statistics"],
)
def test_a_sharded_model_with_batch_statistics_resumes_otherwise(normed: nn.Module, expected: bool) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(2, 2), normed)
        assert not resumes_otherwise(model), "it is not sharded"
        fully_shard(model)
        assert resumes_otherwise(model) == expected
    finally:
        distributed.destroy_process_group()
