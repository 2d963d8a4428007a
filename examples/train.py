"""Trains a model with an ExplanationMonitor, configured by Hydra. Sweeps are in configs/hparams_search."""

from __future__ import annotations

from collections.abc import Mapping

import hydra
import lightning as L
import wandb
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from lightning_explain import ExplanationMonitor


def objectives(config: DictConfig, metrics: Mapping[str, Tensor]) -> list[float]:
    """The last values of the metrics that a sweep optimizes, in the order of the directions in its preset."""
    return [float(metrics[part.metric]) for part in config.get("objectives", {}).values()]


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> list[float]:
    if config.trainer.max_epochs % (config.monitor.every_n_epochs or 1):
        raise ValueError(
            "The last epoch would not be explained; choose monitor.every_n_epochs so that it divides the epochs."
        )
    L.seed_everything(config.seed, workers=True)
    data, model = instantiate(config.data), instantiate(config.model)
    # These samples have masks, which YAML cannot hold. Without masks: ExplanationMonitor.from_config(config.monitor).
    probe = data.probe_samples(**config.monitor.probe)
    monitor = ExplanationMonitor.from_config({**config.monitor, "probe": probe})
    trainer = instantiate(config.trainer, logger=instantiate(config.logger), callbacks=[monitor])
    try:
        trainer.fit(model, datamodule=data)
    finally:
        # Otherwise, all jobs of a sweep would write to the W&B run of the first.
        wandb.finish()
    if monitor.last_report is None or monitor.last_report.step != trainer.global_step:
        raise RuntimeError(
            "The last epoch was not explained, so the objectives would mix two epochs; choose monitor.every_n_epochs so that it is."
        )
    return objectives(config, trainer.callback_metrics)


if __name__ == "__main__":
    main()
