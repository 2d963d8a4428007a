"""A model and its samples in; the explained function, all that methods and metrics see of the model, out."""

from __future__ import annotations

from torch import nn

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Samples
from lightning_explain.engine.baselines import Baselines
from lightning_explain.engine.executor import execute
from lightning_explain.modalities import guess
from lightning_explain.modalities.image import Normalization
from lightning_explain.model.function import TargetFunction
from lightning_explain.model.layers import find_layer


def explained_function(
    model: nn.Module,
    target_function: TargetFunction,
    samples: Samples,
    limit: int,
    *,
    seed: int = 0,
    normalization: Normalization | None = None,
    channels_last: bool = False,
) -> ExplainedFunction:
    """Returns the explained function; it exists only inside the isolation.

    Args:
        model: The module.
        target_function: The model as a function of its inputs.
        samples: All samples of the probe.
        limit: Most samples in one call of the model.
        seed: Key of all random draws.
        normalization: ``(mean, std)`` of image inputs, for the black baseline.
        channels_last: Whether images go through the model in that memory format.
    """
    # Sorted by id, so that random choices from the probe do not depend on the order of its samples.
    order = samples.ids.argsort(stable=True)
    inputs, modalities = tuple(x[order.to(x.device)] for x in samples.inputs), guess(samples.inputs)
    baselines = Baselines(inputs, normalization, samples.ids, modalities)
    return ExplainedFunction(
        forward=target_function,
        layer=lambda name: find_layer(model, str(name)),
        baseline=baselines.points,
        distribution=baselines.distribution,
        draws=KeyedDraws(seed),
        limit=limit,
        probe=samples,
        execute=execute,
        channels_last=channels_last,
        modalities=modalities,
    )
