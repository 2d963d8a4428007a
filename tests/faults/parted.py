"""A rank that fails before the model's own collective, in which the other one then waits: ``python parted.py FOLDER HOW``.

Started for two ranks by ``test_sample.py``. ``HOW`` is ``collective``; or, without one, ``raise`` for ``on_error="raise"``, or ``killed``
for a rank that the machine ends.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples
from training import DigitModule, loader, monitor

TIMEOUT = timedelta(seconds=8)


class Sharded(DigitModule):
    """Its forward needs all ranks, as a sharded model's does; once it has been trained it fails before that on rank 1."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        if not self.training:
            if self.trainer.global_step > 0 and self.trainer.global_rank == 1:
                raise ArithmeticError("no map on rank 1")
            torch.distributed.all_reduce(torch.zeros(1))
        return found


class FailsOnOne(Method):
    """Fails on rank 1 before it calls the model, or is killed there."""

    def __init__(self, killed: bool) -> None:
        self.killed = killed

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        if torch.distributed.get_rank() == 1:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("no map on rank 1")
        explained.evaluate(samples)
        return torch.ones_like(samples.inputs[0])


def main(root: Path, how: str) -> None:
    torch.set_num_threads(1)
    raising = how == "raise"
    watch = monitor(
        methods={"bad": FailsOnOne(how == "killed")},
        metrics=[q.Infidelity(n_perturb_samples=2)],
        on_error="raise" if raising else "warn",
    )
    trainer = pl.Trainer(
        strategy=DDPStrategy(timeout=TIMEOUT),
        accelerator="cpu",
        devices=2,
        max_epochs=3,
        callbacks=[watch],
        default_root_dir=root / os.environ["LOCAL_RANK"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(Sharded() if how == "collective" else DigitModule(), loader(0, 32), loader(100, 8))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
