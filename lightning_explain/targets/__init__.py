"""Targets that know the sample: which numbers of each sample's output are explained, chosen before anything is perturbed.

In: a model's outputs and labels of clean samples. Out: the places in each sample's output whose sum is explained. A new target is a
``Selection`` in a file here and its export line. Must not import ``engine``, ``explainer`` or anything above them, nor Lightning or
Captum. Begin reading with ``Selection`` in ``core/contracts.py``, then ``selections.py``; ``tasks.py`` has the defaults.
"""

from lightning_explain.targets.comparisons import ReconstructionError, Similarity
from lightning_explain.targets.detection import Detection
from lightning_explain.targets.pixels import Pixels
from lightning_explain.targets.selections import Horizon, Norm, Position, Positive

__all__ = ["Detection", "Horizon", "Norm", "Pixels", "Position", "Positive", "ReconstructionError", "Similarity"]
