"""A training on two ranks, started in one of several ways: ``python launched_run.py FOLDER STRATEGY NODES``."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from distributed_run import plain
from lightning_explain import methods as m
from training import loader, monitor


def main(root: Path, strategy: str, nodes: int) -> None:
    torch.set_num_threads(1)
    watch = monitor(methods={"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()})
    module = plain()
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=2 // nodes,
        num_nodes=nodes,
        max_epochs=2,
        callbacks=[watch],
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loader(0, 32, shuffle=True), loader(100, 24))
    scores = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("explain/")}
    found = {"world": trainer.world_size, "scores": scores, "weights": module.net.state_dict()}
    torch.save(found, root / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
