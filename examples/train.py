"""Trains a model with an ExplanationMonitor, configured by Hydra. Sweeps maximize the objective in configs/train.yaml."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import hydra
import lightning as L
import wandb
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from lightning_explain import ExplanationMonitor

log = logging.getLogger(__name__)


def objective(metrics: Mapping[str, Tensor], score: str, explanation: str, weight: float) -> float:
    """The number to maximize, ``score - weight * explanation``: a good score for a bad reason is worth less."""
    return float(metrics[score]) - weight * float(metrics[explanation])


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> float:
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
            "The last epoch was not explained, so the objective would mix two epochs; choose monitor.every_n_epochs so that it is."
        )
    value = objective(trainer.callback_metrics, **config.objective)
    log.info("objective: %.6f", value)
    return value


if __name__ == "__main__":
    main()
