"""Takes a configuration file or an import path, builds its model and samples, and returns the doctor's verdicts or the cost forecast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.schema import short_errors
from lightning_explain.core.verdict import RefusedError, Verdict
from lightning_explain.explainer.cost import Forecast
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import (
    AUTO_LIMIT,
    METHODS,
    build_methods,
    build_metrics,
    build_target,
    check_limit,
    check_task,
)
from lightning_explain.monitor.arguments import selection_of
from lightning_explain.monitor.callback import ExplanationMonitor
from lightning_explain.monitor.checkpoints import check_module, load, load_weights, saved_arguments
from lightning_explain.monitor.config import imported, instantiated, monitor_arguments, read, read_overrides
from lightning_explain.probes.binding import bound
from lightning_explain.probes.selection import ProbeSelection, collect
from lightning_explain.probes.signature import Signature, signature_of

_SAMPLES = 4
_WAYS = (
    "input_shape: [3, 64, 64] (random samples; on the command line --input-shape 3,64,64), or data: {_target_: ...} (a data module, "
    "a loader or a dataset)"
)


def verdicts(model: nn.Module, explainer: Explainer, probe: Probe) -> list[Verdict]:
    """The doctor's verdict on each method; a method that needs a layer and finds none is refused.

    Raises:
        ValueError: If the model fails on the samples.
    """
    with _explaining_errors(probe):
        return explainer.verdicts(model, probe)


def forecast(model: nn.Module, explainer: Explainer, probe: Probe) -> Forecast:
    """The cost of one explanation.

    Raises:
        ValueError: If the model fails on the samples, or a method would be wrong on it.
    """
    with _explaining_errors(probe):
        checked = explainer.check(model, probe)
    return checked.forecast(model, probe)


@contextmanager
def _explaining_errors(probe: Probe) -> Iterator[None]:
    try:
        yield
    except RefusedError:
        raise
    # A model may raise anything on samples of an unsuitable shape.
    except Exception as error:
        shapes = [tuple(x.shape) for x in as_tuple(probe.inputs)]
        raise ValueError(
            f"The model cannot be explained on samples of shape {shapes}: {type(error).__name__}: {error} Give the "
            "input_shape or the data that the model expects."
        ) from error


@short_errors()
def configured_model(
    path: Path,
    overrides: Sequence[str] = (),
    examined: bool = True,
    shapes: Sequence[Any] = (),
    checkpoint: Path | None = None,
    weights_only: bool = True,
) -> tuple[nn.Module, Explainer, Probe]:
    """The model, what explains it, and the samples, by a file or by the import path of the model.

    Args:
        path: A YAML file with ``model``, ``monitor`` and ``input_shape`` or ``data``, composed by Hydra like ``configs/train.yaml``; it
            may have a ``defaults`` list. Or an import path: ``torchvision.models:resnet18``.
        overrides: As on the command line of a Hydra application: ``monitor=full``, ``model.num_classes=5``. With an import path they
            are the configuration itself.
        examined: ``True``: a few samples, and all methods if none are named. ``False``: the samples and methods of a monitor.
        shapes: The shape of one sample of each input, instead of ``input_shape``.
        checkpoint: A checkpoint with the weights, and with the arguments that the configuration leaves out.
        weights_only: ``False``: load a checkpoint that holds more than tensors and plain values, which may run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If Hydra is needed and not installed.
        ValueError: If a key is missing, an object cannot be built, or the weights do not fit.
        TypeError: If a value has a wrong type.
    """
    in_file = path.is_file()
    if not in_file and (path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
        raise FileNotFoundError(
            f"'{path}' does not exist; give a YAML file, or an import path such as torchvision.models:resnet18."
        )
    config = read(path, overrides) if in_file else read_overrides(overrides)
    if shapes:
        config["input_shape"] = shapes[0] if len(shapes) == 1 else list(shapes)
    arguments = monitor_arguments(config.get("monitor") or {}, ExplanationMonitor)
    saved = {} if checkpoint is None else saved_arguments(checkpoint, weights_only)
    model = instantiated(config, "model", saved) if in_file else imported(str(path), config.get("model"), saved)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give what returns a torch.nn.Module.")
    if checkpoint is not None:
        _load_weights(model, checkpoint, weights_only)
    selection = selection_of(arguments.get("probe"))
    count = _SAMPLES if examined else len(selection.indices or ()) or selection.count
    return model, _explainer(arguments, examined), _probe(config, selection, count, signature_of(model))


def _load_weights(model: Any, checkpoint: Path, weights_only: bool) -> None:
    check_module(model)
    content = load(checkpoint, weights_only)
    # The module's own hook may raise anything.
    try:
        load_weights(model, content)
    except Exception as error:
        raise ValueError(f"'{checkpoint}' does not fit the model: {type(error).__name__}: {error}") from error


def shapes_of(sizes: Sequence[str]) -> list[Any]:
    """``["3,64,64"]`` as ``[[3, 64, 64]]``; what is no list of numbers stays as it is."""
    parts = [one.split(",") for one in sizes]
    return [
        list(map(int, found)) if all(part.strip().isdecimal() for part in found) else one
        for one, found in zip(sizes, parts, strict=True)
    ]


def _explainer(arguments: Mapping[str, Any], examined: bool) -> Explainer:
    requests = arguments.get("methods")
    return Explainer(
        methods=build_methods(list(METHODS) if requests is None and examined else requests),
        metrics={} if examined else build_metrics(arguments.get("metrics"), arguments.get("methods") is None),
        target=build_target(arguments.get("target", "label")),
        limit=check_limit(arguments.get("max_examples_per_pass", "auto")) or AUTO_LIMIT,
        normalization=arguments.get("normalization"),
        default_methods=requests is None and not examined,
        default_metrics=arguments.get("metrics") is None,
        task=check_task(arguments.get("task", "auto")),
    )


# -- samples ----------------------------------------------------------------------------------------------------------


def _probe(config: Mapping[str, Any], selection: ProbeSelection, count: int, forward: Signature | None) -> Probe:
    shape, data = config.get("input_shape"), config.get("data")
    if shape is not None:
        return Probe(_random_inputs(shape, count))
    if data is None:
        raise ValueError(f"The configuration has no samples for the model; write {_WAYS}.")
    found = instantiated(config, "data")
    if isinstance(found, Probe):
        return bound(found, forward)
    return collect(_loader(found, selection), selection, forward=forward)


def _random_inputs(shape: Any, count: int) -> tuple[Tensor, ...]:
    """``count`` standard normal samples for each input; ``shape`` is one shape, or a list of one per input."""
    shapes = shape if _is_list(shape) and shape and all(map(_is_list, shape)) else [shape]
    for each in shapes:
        if not _is_list(each) or not all(type(size) is int and size > 0 for size in each):
            raise ValueError(
                f"input_shape={shape!r}; give the shape of one sample, such as [3, 64, 64], or a list of them."
            )
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, *each, generator=generator) for each in shapes)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _loader(data: Any, selection: ProbeSelection) -> Any:
    """The loader to read samples from: that of a data module, the loader itself, or a new one for a dataset."""
    if not hasattr(data, "train_dataloader"):
        return data if hasattr(data, "dataset") or not hasattr(data, "__getitem__") else DataLoader(data)
    data.prepare_data()
    data.setup("test" if selection.source == "test" else "fit")
    loaders = getattr(data, f"{selection.source}_dataloader")()
    return loaders[selection.dataloader_idx] if isinstance(loaders, (list, tuple)) else loaders
