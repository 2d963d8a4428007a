"""Scores of attribution maps: one frozen dataclass each."""

from lightning_explain.metrics.infidelity import Infidelity
from lightning_explain.metrics.localisation import RelevanceMass
from lightning_explain.metrics.sensitivity import SensitivityMax

__all__ = ["Infidelity", "RelevanceMass", "SensitivityMax"]
