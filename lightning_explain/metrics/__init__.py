"""Metrics: one frozen dataclass for each score of attribution maps.

In: ``MetricInputs`` (the explained function, the samples, every method's map). Out: one score per sample and method,
with a standard error where the metric draws at random.
Must not import ``methods``, ``checks``, ``explainer`` or anything above them.
Start reading at ``concentration.py``, then ``infidelity.py``.
"""

from lightning_explain.metrics.agreement import Agreement
from lightning_explain.metrics.completeness import Completeness
from lightning_explain.metrics.concentration import Concentration
from lightning_explain.metrics.deletion import Deletion, Insertion
from lightning_explain.metrics.drift import Drift
from lightning_explain.metrics.importance import Importance
from lightning_explain.metrics.infidelity import Infidelity
from lightning_explain.metrics.localisation import PointingGame, RelevanceMass, RelevanceRank
from lightning_explain.metrics.randomization import Randomization
from lightning_explain.metrics.sensitivity import SensitivityMax
from lightning_explain.metrics.share import Share

__all__ = ["Agreement", "Completeness", "Concentration", "Deletion", "Drift", "Importance", "Infidelity", "Insertion"]
__all__ += ["PointingGame", "Randomization", "RelevanceMass", "RelevanceRank", "SensitivityMax", "Share"]
