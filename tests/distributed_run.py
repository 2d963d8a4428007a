"""Trainings on two ranks, launched by ``test_distributed.py``: ``python distributed_run.py FOLDER [SCENARIO ...]``.

Lightning runs this file again for rank 1. Each rank writes what it saw to ``FOLDER/<rank>.pt``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset

from lightning_explain import ExplanationMonitor, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, MetricInputs
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.monitor import beside as worker_processes
from lightning_explain.monitor import publisher
from networks import DigitNet, digits
from states import Recorder, assert_equal
from training import Counted, DigitModule, Failing, NoTarget, loader, monitor
from workers import Here

KEY = "explain/infidelity/saliency"


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class FailsOnOne(Counted):
    """Fails on rank 1."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        found = super().attribute(explained, samples)
        if rank() == 1:
            raise ArithmeticError("no map on rank 1")
        return found


class FailsToScore(q.Infidelity):
    """Fails on rank 1."""

    def score(self, case: MetricInputs) -> Any:
        if rank() == 1:
            raise ArithmeticError("no score on rank 1")
        return super().score(case)


class SlowOnZero(Counted):
    """Takes its time on rank 0 only, so that the clocks of the ranks disagree."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        time.sleep(0.1 if rank() == 0 else 0.0)
        return super().attribute(explained, samples)


def no_samples(batch: Any) -> Any:
    if rank() == 1:
        raise ArithmeticError("no samples on rank 1")
    return tuple(batch)


def plain() -> DigitModule:
    """Without batch statistics, which each rank has its own of between steps."""
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    return DigitModule(nn.Sequential(conv, nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, 10)))


def run(
    root: Path,
    watch: pl.Callback,
    module: DigitModule,
    *others: pl.Callback,
    epochs: int = 1,
    validation: Any = None,
    strategy: Any = "ddp",
) -> pl.Trainer:
    """One training on two ranks."""
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=2,
        max_epochs=epochs,
        callbacks=[watch, *others],
        default_root_dir=root,
        logger=TensorBoardLogger(root),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in others),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module, loader(0, 32, shuffle=True), loader(100, 24, shuffle=True) if validation is None else validation
    )
    return trainer


def seen(watch: ExplanationMonitor, trainer: pl.Trainer) -> dict[str, Any]:
    """What one rank has afterwards."""
    report = watch.last_report
    return {
        "metrics": {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("explain/")},
        "steps": trainer.global_step,
        "attributions": {} if report is None else dict(report.attributions),
        "scores": {} if report is None else {k: dict(v) for k, v in report.scores.items()},
        "schedule": {k: v for k, v in watch.state_dict()["schedule"].items() if k != "origin"},
    }


def samples_of(watch: ExplanationMonitor) -> dict[str, Any]:
    assert watch.probe is not None
    return {"inputs": watch.probe.inputs, "targets": watch.probe.targets, "ids": watch.probe.sample_ids}


def fine(root: Path) -> dict[str, Any]:
    watch, module = monitor(methods={"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}), plain()
    best = ModelCheckpoint(root / "checkpoints", monitor=KEY, save_top_k=-1)
    found = seen(watch, run(root, watch, module, best, epochs=2))
    return {**found, **samples_of(watch), "weights": module.net.state_dict()}


def beside(root: Path) -> dict[str, Any]:
    """The same with a process beside rank zero, which has all reports; and models that no process can explain alone."""
    watch, module = (
        monitor(methods={"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}, beside=True, when_busy="wait"),
        plain(),
    )
    trainer = run(root, watch, module, epochs=2)
    refused = []
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    for model, arguments in ((Gathering(plain().net), {}), (Sharded(DigitNet()), {"strategy": sharded})):
        try:
            run(root / "refused", monitor(beside=True), model, **arguments)
        except ValueError as error:
            refused.append(str(error))
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("explain/")}
    last = {} if watch.last_report is None else watch.last_report.attributions
    return {
        "attributions": dict(last),
        "metrics": metrics,
        "weights": module.net.state_dict(),
        "refused": refused,
        **samples_of(watch),
    }


class Notes(pl.Callback):
    """Copies the weights behind the monitor, before a validation spreads the statistics of rank zero."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *arguments: Any) -> None:
        self.weights = {name: value.clone() for name, value in module.net.state_dict().items()}


def batch_statistics(root: Path) -> dict[str, Any]:
    # Right after a training step, before the next forward spreads the statistics of rank zero.
    watch, module = monitor(every_n_train_steps=1, at_start=True), DigitModule(DigitNet())
    stop, notes = EarlyStopping(monitor=KEY, patience=50), Notes()
    found = seen(watch, run(root, watch, module, stop, notes, epochs=2))
    return {**found, **samples_of(watch), "weights": notes.weights}


def failing_method(root: Path) -> dict[str, Any]:
    methods = {"bad": FailsOnOne(), "saliency": m.Saliency(abs=False)}
    metrics = {"infidelity": q.Infidelity(n_perturb_samples=2), "worse": FailsToScore(n_perturb_samples=2)}
    watch = monitor(methods=methods, metrics=metrics)
    return seen(watch, run(root, watch, plain(), epochs=2))


def failing_explanation(root: Path) -> dict[str, Any]:
    target = NoTarget(ArithmeticError("no target on rank 1"), ranks=[1])
    watch = monitor(target=target)
    return seen(watch, run(root, watch, plain(), target, epochs=2))


def limited(root: Path) -> dict[str, Any]:
    counted = SlowOnZero()
    watch = monitor(methods={"it": counted}, metrics=[], max_overhead=0.3, every_n_train_steps=1)
    return {**seen(watch, run(root, watch, plain(), epochs=4)), "calls": counted.calls}


class Stream(IterableDataset):
    """Other samples on each rank."""

    def __iter__(self) -> Any:
        x, y = digits()
        return iter([(x[i], y[i]) for i in range(100 * rank(), 100 * rank() + 24)])


def stream(root: Path) -> dict[str, Any]:
    watch = monitor()
    found = seen(watch, run(root, watch, plain(), validation=DataLoader(Stream(), batch_size=8)))
    return {**found, **samples_of(watch)}


def undisturbed(root: Path) -> dict[str, Any]:
    """A training with batch statistics and dropout, with the monitor and without it, hook by hook."""
    methods = {"cam": m.LayerGradCam(), "shap": m.GradientShap(2, 0.1, "probe")}
    watch = monitor(methods=methods, every_n_train_steps=1, at_start=True)
    states = []
    for arguments in ({}, {"enabled": False}):
        pl.seed_everything(3, verbose=False)
        recorder = Recorder(watch)
        run(root, monitor(**arguments) if arguments else watch, DigitModule(DigitNet()), recorder, epochs=2)
        states.append(recorder.states)
    assert_equal(*states)
    return {"states": len(states[0]), "reports": len(recorder.reports), "steps": watch.last_report.step}


class Sharded(DigitModule):
    """Its weights are spread over the ranks."""

    def configure_model(self) -> None:
        fully_shard(self.net.block, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


def sharded(root: Path) -> dict[str, Any]:
    """The same under FSDP2, with what is explained."""
    found, weights = {}, []
    for enabled in (True, False):
        pl.seed_everything(3, verbose=False)
        methods = {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam("net.block.bn2")}
        watch = monitor(methods=methods, enabled=enabled, at_start=True, probe=ProbeSelection(count=3))
        module = Sharded(DigitNet())
        trainer = run(
            root, watch, module, strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), epochs=2
        )
        found = {**seen(watch, trainer), **samples_of(watch)} if enabled else found
        whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in module.net.state_dict().items()}
        weights.append({name: value.clone() for name, value in whole.items()})
    assert_equal(*weights)
    return {**found, "weights": weights[0]}


class Gathering(DigitModule):
    """Its forward needs both ranks, though its weights are all here."""

    def forward(self, x: Tensor) -> Tensor:
        torch.distributed.all_reduce(torch.ones(1))
        return super().forward(x)


def gathering(root: Path) -> dict[str, Any]:
    watch = monitor(probe=ProbeSelection(count=3), max_examples_per_pass=2)
    module = Gathering(plain().net)
    return {**seen(watch, run(root, watch, module)), **samples_of(watch), "weights": module.net.state_dict()}


def drifting(root: Path) -> dict[str, Any]:
    # Batch statistics are each rank's own, and so are its maps; the score falls below on rank zero's word for both.
    alerts = [{"metric": "drift_cosine_first/saliency", "below": 2, "patience": 3, "action": "stop"}]
    watch = monitor(metrics=[q.Drift()], every_n_train_steps=1, alerts=alerts)
    found = seen(watch, run(root, watch, DigitModule(DigitNet()), epochs=9))
    state = watch.state_dict()
    return {**found, "history": state["history"], "alerts": state["alerts"]}


def warnings_as_errors(root: Path) -> dict[str, Any]:
    """A method fails on rank 1, and so does a whole explanation later on; an alert fires on rank zero."""
    target = NoTarget(ArithmeticError("no target on rank 1"), ranks=[1])
    alerts = [{"metric": "infidelity/saliency", "above": -1}]
    methods = {"bad": FailsOnOne(), "saliency": m.Saliency(abs=False)}
    with warnings.catch_warnings(record=True) as warned:
        for start in ("ExplanationMonitor", "explain/", "'bad'"):
            warnings.filterwarnings("error", start)
        one = seen(watch := monitor(methods=methods, alerts=alerts), run(root / "one", watch, plain(), epochs=4))
        two = seen(watch := monitor(target=target), run(root / "two", watch, plain(), target, epochs=4))
    return {"one": one, "two": two, "warned": [str(w.message) for w in warned]}


def unreachable(*arguments: Any) -> Any:
    raise ConnectionError("no route to the loggers")


def no_sinks() -> AbstractContextManager[Any]:
    """Sinks cannot be opened inside, on rank zero."""
    return mock.patch.object(publisher, "sinks_for", unreachable)


class Bar(pl.Callback):
    """Reads the logged metrics on rank zero alone, as Lightning's progress bars do."""

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if rank() == 0:
            trainer.progress_bar_metrics  # noqa: B018


class Synced(DigitModule):
    """Logs a metric that all ranks compute together when it is read."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=8)
        return loss


def bar_in_front(root: Path) -> dict[str, Any]:
    watch = monitor()
    trainer = run(root, Bar(), Synced(plain().net), watch, epochs=2)
    assert watch.last_report is not None
    return {**seen(watch, trainer), "logged": dict(watch.last_report.logged)}


def closed_sinks(root: Path) -> dict[str, Any]:
    with no_sinks():
        return seen(watch := monitor(), run(root, watch, plain(), epochs=2))


def raised(
    arguments: dict[str, Any], around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Callable[[Path], dict[str, Any]]:
    def scenario(root: Path) -> dict[str, Any]:
        try:
            with around():
                run(root, monitor(**arguments), plain())
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": "none"}

    return scenario


def beside_here() -> AbstractContextManager[Any]:
    """What explains beside rank zero is in its process."""
    return mock.patch.object(worker_processes, "Worker", Here)


def beside_again(root: Path) -> dict[str, Any]:
    """A second training and a test in the same process, where rank zero alone knows what was explained beside the first."""
    methods = {"saliency": m.Saliency(abs=False), "bad": Failing()}
    arguments: dict[str, Any] = {"alerts": ["drift_cosine_first/saliency > -2 for 9"], "max_examples_per_pass": "auto"}
    watch, module = monitor(methods=methods, metrics=[q.Drift()], beside=True, at_start=True, **arguments), plain()
    with beside_here():
        trainer = run(root, watch, module, epochs=3)
        first = watch.state_dict()
        trainer.fit_loop.max_epochs = 4
        trainer.fit(module, loader(0, 32, shuffle=True), loader(100, 24, shuffle=True))
    trainer.test(module, loader(200, 16), verbose=False)
    states = [
        {key: state.get(key) for key in ("schedule", "alerts", "failures", "pace", "history")}
        for state in (first, watch.state_dict())
    ]
    return {**seen(watch, trainer), "states": states}


def double(outputs: Tensor) -> Tensor:
    return 2 * outputs[:, 0]


UNLIKE: dict[str, Any] = {
    # What rank 1 is given beside what rank 0 is given.
    "methods": {"methods": {"saliency": m.Saliency()}},
    "method_argument": {"methods": {"ig": m.IntegratedGradients(baselines=torch.ones(1, 1, 8, 8))}},
    "metrics": {"metrics": [q.Drift()]},
    "probe": {"probe": ProbeSelection(count=4, seed=1)},
    "seed_and_schedule": {"seed": 3, "every_n_epochs": 2},
    "enabled": {"enabled": False},
    "target": {"target": 1},
    "the_same_function": {"target": double},
    "class_names": {"class_names": ["x", "y"]},
    "alerts": {"alerts": [{"metric": "infidelity/ig", "below": 1}]},
    "name": {"name": "other"},
    "on_error": {"on_error": "raise"},
    "nothing": {},
}


def unlike(root: Path) -> dict[str, Any]:
    """Monitors whose arguments differ between the ranks: in a training, and at the beginning of others."""
    given = {"methods": {"ig": m.IntegratedGradients(baselines=torch.zeros(1, 1, 8, 8))}, "target": double}
    given = {**given, "metrics": [q.Infidelity(n_perturb_samples=2)], "probe": ProbeSelection(count=4)}
    found: dict[str, Any] = {}
    trainer = run(root, ExplanationMonitor(**given, enabled=False), module := plain())
    for name, other in UNLIKE.items():
        watch = ExplanationMonitor(**{**given, **(other if rank() == 1 else {})})
        trainer.callbacks = (
            [ExplanationMonitor(**given, name="first"), watch] if name == "seed_and_schedule" else [watch]
        )
        begun = time.monotonic()
        found[name] = "agreed"
        try:
            trainer.callbacks[0].setup(trainer, module, "validate")
        except ValueError as error:
            found[name] = str(error)
        found[f"{name}, seconds"] = time.monotonic() - begun
    seen_batches = Notes()
    try:
        run(root, ExplanationMonitor(**given, seed=rank()), plain(), seen_batches)
    except ValueError as error:
        found["training"] = str(error)
    found["batches"] = hasattr(seen_batches, "weights")
    strategy = DDPStrategy(timeout=timedelta(seconds=3))
    watch, others = monitor(), [Notes()]
    trainer = run(root, watch if rank() == 0 else others[0], plain(), *others[: 1 - rank()], strategy=strategy)
    return {**found, "alone": (trainer.global_step, watch.enabled, watch.last_report is None)}


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "fine": fine,
    "beside": beside,
    "beside_raising": raised(
        {"methods": {"bad": Failing()}, "beside": True, "every_n_train_steps": 1, "on_error": "raise"}, beside_here
    ),
    "beside_again": beside_again,
    "batch_statistics": batch_statistics,
    "failing_method": failing_method,
    "failing_explanation": failing_explanation,
    "limited": limited,
    "stream": stream,
    "undisturbed": undisturbed,
    "sharded": sharded,
    "gathering": gathering,
    "drifting": drifting,
    "raising": raised({"methods": {"bad": FailsOnOne()}, "on_error": "raise"}),
    "warnings_as_errors": warnings_as_errors,
    "bar_in_front": bar_in_front,
    "closed_sinks": closed_sinks,
    "closed_sinks_raising": raised({"on_error": "raise"}, no_sinks),
    "unlike": unlike,
    "no_rows": raised({"batch_fn": no_samples}),
}


def main(root: Path, *names: str) -> None:
    torch.set_num_threads(1)
    found = {}
    for name, scenario in ((name, SCENARIOS[name]) for name in names or SCENARIOS):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found[name] = scenario(root / name)
        found[name]["told"] = [str(w.message) for w in told if w.category is RuntimeWarning]
    torch.save(found, root / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
