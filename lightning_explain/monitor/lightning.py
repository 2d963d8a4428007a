"""Takes a Trainer, and returns its run directory, what it logged, its progress bar, and what its ranks agree on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed, nn
from torch.amp import is_autocast_available

from lightning_explain.core.containers import resolved
from lightning_explain.core.run_info import flat, plain
from lightning_explain.core.schema import brief, one_line
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.distributed.ranks import ALONE, Ranks
from lightning_explain.engine.pass_size import synchronize
from lightning_explain.loggers.packages import in_both
from lightning_explain.model.function import ForwardFn
from lightning_explain.model.isolation import Context
from lightning_explain.monitor.failures import rank_zero_warn_or_log

# Lightning 2.5 has no such callback.
_AVERAGING: tuple[type, ...] = (callbacks.WeightAveraging,) if hasattr(callbacks, "WeightAveraging") else ()
_PACKAGES = ("lightning", "pytorch_lightning", "lightning_explain")
_MOST_HYPERPARAMETERS = 500
_BEFORE_VALIDATION = ("on_validation_start", "on_validation_epoch_start")


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuses strategies under which one rank cannot call the module on its own.

    Raises:
        ValueError: If the strategy is DeepSpeed, or each rank holds one stage of a pipeline.
    """
    kind = type(trainer.strategy)
    if issubclass(kind, in_both(DeepSpeedStrategy)):
        reason = "its engine owns the forward and the gradients"
    elif any("pipe" in base.__name__.lower() for base in kind.__mro__):
        reason = "each rank of a pipeline holds only a part of the model, and none can compute the output"
    else:
        return
    raise ValueError(
        f'ExplanationMonitor cannot explain under {kind.__name__}: {reason}. Use strategy="ddp" or FSDP2 '
        "(ModelParallelStrategy), or explain saved checkpoints with explain()."
    )


def check_whole(trainer: pl.Trainer) -> None:
    """Refuses strategies under which no process has all weights, and systems without the memory that two processes share.

    Raises:
        ValueError: If the weights are sharded, or the system is Windows.
    """
    if os.name != "posix":
        raise ValueError("beside=... needs Linux or macOS; use beside=False.")
    if isinstance(trainer.strategy, in_both(FSDPStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"beside=... copies the weights of one process, but under {type(trainer.strategy).__name__} each has only a part of them. "
            'Use beside=False, or strategy="ddp".'
        )


def forward_of(trainer: pl.Trainer) -> ForwardFn:
    """The function that calls the module under this strategy; ``None``: call the module directly.

    FSDP1 gathers the weights of the outermost module only when its wrapper is called.
    """
    wrapper: Any = trainer.model
    sharded = isinstance(trainer.strategy, in_both(FSDPStrategy))
    return (lambda module, *inputs, **named: wrapper(*inputs, **named)) if sharded else None


def eager(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a module without what Lightning puts into one that was given to the Trainer as ``torch.compile(module)``.

    That cannot be pickled, and what it stands for is in the class.

    Args:
        module: A module.
        state: Its attributes, which are not changed; they are returned if nothing is left out.
    """
    if not state.get("_compiler_ctx") or not isinstance(module, in_both(pl.LightningModule)):
        return state
    found = dict(state)
    for key, original in found["_compiler_ctx"].items():
        name = key.removeprefix("original_")
        if name == key:
            continue
        del found[name]
        if not (isinstance(original, MethodType) and original.__self__ is module):
            found[name] = original
    found.pop("_compile_kwargs", None)
    return {**found, "_compiler_ctx": None}


def forward_context(trainer: pl.Trainer, device: str | None = None) -> tuple[Context, str]:
    """What is entered around each forward pass, such as autocast.

    Args:
        trainer: The Trainer.
        device: Where the passes are computed; ``None``: where the model trains.

    Returns:
        The context, and in words what passes are computed in if autocast cannot do there what it does in the training; else nothing.
    """
    plugin: Any = trainer.precision_plugin
    kind = None if device is None else torch.device(device).type
    if kind is None or not isinstance(plugin, in_both(MixedPrecision)) or torch.device(plugin.device).type == kind:
        return plugin.forward_context, ""
    dtype = torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16
    if is_autocast_available(kind) and (kind, dtype) != ("cpu", torch.float16):
        return partial(torch.autocast, kind, dtype=dtype, cache_enabled=False), ""
    return nullcontext, f"float32 on {device}, not {plugin.precision} as in the training"


def ended_on_validation(trainer: pl.Trainer) -> bool:
    """Whether the epoch after which a training resumes ends with a validation."""
    epochs, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if epochs is not None:
        return trainer.current_epoch % epochs == 0
    return batches is not None and (trainer.fit_loop.total_batch_idx + 1) % batches == 0


def epoch_of_last_batch(trainer: pl.Trainer) -> int:
    """The epoch of the last batch before a training resumes; ``trainer.current_epoch`` may already be the next one."""
    return max(0, trainer.fit_loop.epoch_progress.current.ready - 1)


def may_swap_weights(trainer: pl.Trainer) -> bool:
    """Whether something runs before validation and may swap the weights, for averages for example."""
    parts = [callback for callback in trainer.callbacks if _is_foreign(callback)]  # type: ignore[attr-defined]
    kinds = (pl.LightningModule, pl.Callback)
    return any(
        overrides(part, hook, *kinds) for part in (trainer.lightning_module, *parts) for hook in _BEFORE_VALIDATION
    )


def overrides(part: object, hook: str, *kinds: type) -> bool:
    """Whether a part that is of one of the kinds, of either package, has this hook itself."""
    parent = next(kind for kind in in_both(*kinds) if isinstance(part, kind))
    return is_overridden(hook, part, parent)


def _is_foreign(callback: pl.Callback) -> bool:
    """Whether a callback is neither ours nor Lightning's; Lightning's ``WeightAveraging`` counts as foreign."""
    ours = type(callback).__module__.partition(".")[0] in _PACKAGES
    return isinstance(callback, in_both(*_AVERAGING)) or not ours


@contextmanager
def silenced(module: pl.LightningModule) -> Iterator[None]:
    """Turns ``self.log`` off inside: it would log values of probe samples, or raise where a hook forbids logging."""
    parts = [
        part for part in module.modules() if isinstance(part, in_both(pl.LightningModule)) and "log" not in vars(part)
    ]
    for part in parts:
        vars(part)["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for part in parts:
            del vars(part)["log"]


def now(module: pl.LightningModule) -> float:
    """The clock in seconds, once the module's device has done what it was given."""
    # Of a device that torch cannot wait for, the time is that of the calls. An error of earlier work is the training's to raise.
    with suppress(RuntimeError, ValueError):
        synchronize(module.device)
    return time.perf_counter()


def logged(trainer: pl.Trainer, monitors: Iterable[str]) -> dict[str, float]:
    """What the module has logged by now, by name: finite numbers, without the scores of monitors of these names.

    Call it on all ranks, because Lightning may compute metrics for it.
    """
    scores = tuple(f"{name}/" for name in monitors)
    found = trainer.callback_metrics.items()
    own = {str(key): torch.as_tensor(value) for key, value in found if not str(key).startswith(scores)}
    numbers = {key: float(value) for key, value in own.items() if value.numel() == 1 and not value.is_complex()}
    return {key: number for key, number in numbers.items() if math.isfinite(number)}


def hyperparameters(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """What module and data module saved with ``save_hyperparameters``, flat, as numbers and short words."""
    owners = [part for part in (trainer.datamodule, module) if part is not None]  # type: ignore[attr-defined]
    saved = {key: value for owner in owners for key, value in resolved(dict(owner.hparams_initial)).items()}
    found = islice(flat(plain(saved, numbers=False)).items(), _MOST_HYPERPARAMETERS)
    return {key: value if isinstance(value, (bool, int, float)) else _words(value) for key, value in found}


def _words(value: Any) -> str:
    return one_line(value) if isinstance(value, str) else brief(value)


def run_directory(trainer: pl.Trainer) -> Path:
    """The directory of this run, absolute, local, and the same on every rank. Call it on all ranks."""
    first = trainer.logger
    if first is None or isinstance(first, in_both(TensorBoardLogger, CSVLogger)):
        return _local(trainer.log_dir or trainer.default_root_dir)
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    path = os.path.join(first.save_dir or trainer.default_root_dir, str(first.name), version)
    return _local(trainer.strategy.broadcast(path))


def _local(folder: str) -> Path:
    """The folder, absolute. In the place of a remote one (``s3://bucket/run``) ``bucket/run`` in the working directory, which is said."""
    _, remote, path = folder.rpartition("://")
    local = Path(path).absolute()
    if remote:
        rank_zero_warn_or_log(
            f"The folder of the run, {folder}, is remote; reports and picture files are written to {local}."
        )
    return local


class _Bar(Tqdm):
    """Starts no thread: tqdm's own one, which looks after slow bars, would stay when the bar is gone."""

    monitor_interval = 0


@contextmanager
def progress_bar(trainer: pl.Trainer, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar like Lightning's, shown after two seconds, if the Trainer shows progress; yields what advances it."""
    if not (getattr(trainer.progress_bar_callback, "is_enabled", False) and trainer.is_global_zero):
        yield lambda name: None
        return
    with _Bar(total=total, desc="Explaining", delay=2, leave=False, dynamic_ncols=True) as bar:

        def step(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        yield step


# -- ranks: call these on all of them ------------------------------------------------------------------------------


def everyone(trainer: pl.Trainer) -> Ranks:
    """All processes of a Trainer. They wait for each other for at most the strategy's ``timeout``."""
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if trainer.world_size == 1 or world != trainer.world_size:
        return ALONE
    return Ranks(world, deadline=getattr(trainer.strategy, "_timeout", None))


def ranks_of(trainer: pl.Trainer, module: pl.LightningModule) -> Ranks:
    """The processes that explain together. The ranks of one tensor-parallel model receive the same samples."""
    world, deadline = everyone(trainer).world, getattr(trainer.strategy, "_timeout", None)
    if world == 1:
        return ALONE
    sharded = isinstance(trainer.strategy, in_both(FSDPStrategy)) or is_sharded(module)
    if not isinstance(trainer.strategy, in_both(ModelParallelStrategy)):
        return Ranks(world, sharded=sharded, deadline=deadline)
    mesh = trainer.strategy.device_mesh
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    return Ranks(world, data.size(), data.get_local_rank(), tensor.get_local_rank() == 0, sharded, deadline)
