"""Surrogate methods: random feature sets in, coefficients of a simple model fitted around each sample out.

They need scikit-learn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from captum import attr as captum

from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple
from lightning_explain.core.validation import check_callable, check_whole
from lightning_explain.engine.baselines import check_baseline
from lightning_explain.engine.captum_adapter import attribute, freeze
from lightning_explain.engine.features import FeatureMask, check_feature_mask, features_of
from lightning_explain.methods.shapley import ShapleyValues, one_by_one, perturbed


@dataclass(frozen=True)
class Lime(Method):
    """Coefficients of a linear model fitted to random feature sets (Ribeiro et al. 2016; ``captum.attr.Lime``).

    The random sets are keyed by sample id: every explanation repeats them.

    Cost: n_samples forward, 0 backward.
    Not for: more features than ``n_samples`` can separate (images without a ``feature_mask``); outputs of small scale
        (probabilities), which the default Lasso shrinks to zero.

    Args:
        n_samples: Random feature sets for each sample.
        baselines: Value of a missing feature: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        feature_mask: How input elements form features: ``None`` (each element is a feature), a tensor of whole numbers,
            ``{"grid": 8}`` (patches of 8 by 8 pixels), ``{"superpixels": 50}`` (segments of each sample), or one of
            these for each input.
        interpretable_model: The model to fit, as in Captum. Default: Lasso with ``alpha=0.01``.
        similarity_func: Weight of a random set, as in Captum. Default: exponential kernel of the cosine distance.
        perturb_func: How feature sets are drawn, as in Captum, with the global generators seeded for the sample.
            Default: each feature with probability 1/2.
        return_input_shape: Return each element's coefficient in the input's shape; otherwise the coefficients ``(N,
            features)``.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If an argument is of another type.
        ImportError: If scikit-learn is missing and no ``interpretable_model`` is given.

    Example:
        >>> report = explain(model, probe, methods=[m.Lime(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["lime"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule: ClassVar[str] = "none"
    multiplies_by_inputs = True

    n_samples: int = 25
    baselines: Baseline = None
    feature_mask: FeatureMask = None
    interpretable_model: Any = None
    similarity_func: Callable[..., Any] | None = None
    perturb_func: Callable[..., Any] | None = None
    return_input_shape: bool = True

    def __post_init__(self) -> None:
        _check(self)
        for name in ("similarity_func", "perturb_func"):
            check_callable("Lime", name, getattr(self, name))
        if self.interpretable_model is None:
            _check_sklearn("Lime", "; or give an interpretable_model")

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        explainer = captum.Lime(explained.forward, self.interpretable_model, self.similarity_func, self.perturb_func)
        return _fitted(self, explainer, explained, samples)


@dataclass(frozen=True)
class KernelShap(Method):
    """Shapley values estimated by a weighted linear fit (Lundberg & Lee 2017; ``captum.attr.KernelShap``).

    The random feature sets are keyed by sample id: every explanation repeats them.

    Cost: n_samples forward, 0 backward.
    Not for: more features than ``n_samples`` can separate (images without a ``feature_mask``); up to 12 features: use
        ShapleyValues, which is exact.

    Args:
        n_samples: Random feature sets for each sample.
        baselines: Value of a missing feature: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        feature_mask: How input elements form features: ``None`` (each element is a feature), a tensor of whole numbers,
            ``{"grid": 8}`` (patches of 8 by 8 pixels), ``{"superpixels": 50}`` (segments of each sample), or one of
            these for each input.
        return_input_shape: Return each element's coefficient in the input's shape; otherwise the coefficients ``(N,
            features)``.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` or ``feature_mask`` is of another type.
        ImportError: If scikit-learn is missing.

    Example:
        >>> report = explain(model, probe, methods=[m.KernelShap(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["kernel_shap"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule: ClassVar[str] = "none"
    multiplies_by_inputs = True

    n_samples: int = 25
    baselines: Baseline = None
    feature_mask: FeatureMask = None
    return_input_shape: bool = True

    def __post_init__(self) -> None:
        _check(self)
        _check_sklearn("KernelShap")

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        return _fitted(self, captum.KernelShap(explained.forward), explained, samples, self._of_one_feature)

    def _of_one_feature(self, explained: ExplainedFunction, sample: Samples) -> Attribution | None:
        """Exact value of a single feature (as a constant image has), on which Captum's sampling fails; else ``None``."""
        if features_of(self.feature_mask, explained, sample).count > 1:
            return None
        return ShapleyValues(self.baselines, self.feature_mask).attribute(explained, sample)


def _check(method: Lime | KernelShap) -> None:
    freeze(method)
    owner = type(method).__name__
    # Any model fits a single draw, including the all-zero model.
    check_whole(owner, "n_samples", method.n_samples, least=2)
    check_baseline(method.baselines)
    check_feature_mask(f"{owner}(feature_mask", method.feature_mask)


def _check_sklearn(owner: str, otherwise: str = "") -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(f"{owner} fits its model with scikit-learn: pip install scikit-learn{otherwise}.")


def _fitted(
    method: Lime | KernelShap,
    explainer: Any,
    explained: ExplainedFunction,
    samples: Samples,
    without_fit: Callable[[ExplainedFunction, Samples], Attribution | None] = lambda explained, sample: None,
) -> Attribution:
    def call(sample: Samples) -> Attribution:
        exact = without_fit(explained, sample)
        if exact is not None:
            return exact if method.return_input_shape else as_tuple(exact)[0].reshape(1, -1)[:, :1]
        arguments = perturbed(explained, sample, method.baselines, method.feature_mask)
        shape = method.return_input_shape
        found = attribute(
            explainer.attribute, sample, n_samples=method.n_samples, return_input_shape=shape, **arguments
        )
        return found if shape else as_tuple(found)[0].reshape(1, -1)

    return one_by_one(explained, samples, call)
