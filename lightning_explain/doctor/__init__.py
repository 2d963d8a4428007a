"""Looks at a model before training: which method would be wrong on it and why; mends are data that the guard applies."""

from lightning_explain.doctor.examination import doctor
from lightning_explain.doctor.table import acted_upon, table

__all__ = ["acted_upon", "doctor", "table"]
