"""Surrogate methods: random feature sets in, coefficients of a simple model fitted around each sample out.

They need scikit-learn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captum import attr as captum
from torch import Tensor
from torch.nn.functional import pad

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_whole
from lightning_explain.engine.features import FeatureMask, features_of
from lightning_explain.methods.shapley import OneByOne, ShapleyValues


class Surrogate(OneByOne):
    """Base class of methods that fit a simple model to the output at random feature sets of a sample."""

    interpretable_model: Any = None
    return_input_shape: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        # Any model fits a single draw, including the all-zero model.
        check_whole(owner, "n_samples", self.n_samples, least=2)
        if self.interpretable_model is None and importlib.util.find_spec("sklearn") is None:
            otherwise = "; or give an interpretable_model" if isinstance(self, Lime) else ""
            fix = f"pip install 'lightning-explain[surrogates]'{otherwise}"
            raise ImportError(f"{owner} fits its model with scikit-learn: {fix}.")

    @property
    def evaluations(self) -> PassCount:
        """The random feature sets."""
        return PassCount(self.n_samples)

    def attribute_one(self, explained: ExplainedFunction, sample: Samples, **further: Any) -> Attribution:
        """The coefficients of one sample, input-shaped, or ``(1, features)``."""
        found = super().attribute_one(explained, sample, return_input_shape=self.return_input_shape, **further)
        return found if self.return_input_shape else as_tuple(found)[0].reshape(1, -1)

    def completed(self, explained: ExplainedFunction, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Coefficients of features that a sample lacks are 0, as in Captum."""
        if self.return_input_shape:
            return found
        count = features_of(self.feature_mask, explained, explained.probe).count
        return (pad(found[0], (0, count - found[0].shape[1])),)


@dataclass(frozen=True)
class Lime(Surrogate):
    r"""Coefficients of a linear model fitted to random feature sets (Ribeiro et al. 2016; ``captum.attr.Lime``).

    The random sets are keyed by sample id: every explanation repeats them.

    Formula: \phi = \arg\min_{w} \sum_{S} k(x, x_S) \left(f(x_S) - w_0 - \sum_{g \in S} w_g\right)^2 + \lambda \|w\|_1
    Cost: n_samples forward, 0 backward.
    Not for: more features than ``n_samples`` can separate (images without a ``feature_mask``); outputs of small scale
        (probabilities), which the default Lasso shrinks to zero.

    Args:
        n_samples: Random feature sets for each sample.
        interpretable_model: The model to fit, as in Captum. Default: Lasso with ``alpha=0.01``.
        similarity_func: Weight of a random set, as in Captum. Default: exponential kernel of the cosine distance.
        perturb_func: How feature sets are drawn, as in Captum, with the global generators seeded for the sample.
            Default: each feature with probability 1/2.
        return_input_shape: Return each element's coefficient in the input's shape; otherwise the coefficients ``(N,
            features)``, 0 for the last ones of a sample with fewer features than others.

    Further arguments: :class:`ShapleyValueSampling`.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If an argument is of another type.
        ImportError: If scikit-learn is missing and no ``interpretable_model`` is given.

    Example:
        >>> report = explain(model, probe, methods=[m.Lime(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["lime"].shape
        torch.Size([2, 3, 8, 8])
    """

    n_samples: int = 25
    baselines: Baseline = None
    feature_mask: FeatureMask = None
    interpretable_model: Any = None
    similarity_func: Callable[..., Any] | None = None
    perturb_func: Callable[..., Any] | None = None
    return_input_shape: bool = True

    def explainer(self, explained: ExplainedFunction) -> Any:
        """Captum's object."""
        return captum.Lime(explained.forward, self.interpretable_model, self.similarity_func, self.perturb_func)


@dataclass(frozen=True)
class KernelShap(Surrogate):
    r"""Shapley values estimated by a weighted linear fit (Lundberg & Lee 2017; ``captum.attr.KernelShap``).

    The random feature sets are keyed by sample id: every explanation repeats them.

    Formula: \phi = \arg\min_{w} \sum_{S} \frac{|F| - 1}{\binom{|F|}{|S|}\,|S|\,(|F| - |S|)} \left(f(x_S) - f(b) -
        \sum_{g \in S} w_g\right)^2
    Cost: n_samples forward, 0 backward.
    Not for: more features than ``n_samples`` can separate (images without a ``feature_mask``); up to 12 features: use
        ShapleyValues, which is exact.

    Further arguments: :class:`Lime`.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` or ``feature_mask`` is of another type.
        ImportError: If scikit-learn is missing.

    Example:
        >>> report = explain(model, probe, methods=[m.KernelShap(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["kernel_shap"].shape
        torch.Size([2, 3, 8, 8])
    """

    captum_class = captum.KernelShap

    n_samples: int = 25
    baselines: Baseline = None
    feature_mask: FeatureMask = None
    return_input_shape: bool = True

    def attribute_one(self, explained: ExplainedFunction, sample: Samples, **further: Any) -> Attribution:
        """The coefficients of one sample; exact for a single feature (a constant image), where Captum's sampling fails."""
        if features_of(self.feature_mask, explained, sample).count > 1:
            return super().attribute_one(explained, sample, **further)
        exact = ShapleyValues(self.baselines, self.feature_mask).attribute(explained, sample)
        return exact if self.return_input_shape else as_tuple(exact)[0].reshape(1, -1)[:, :1]
