"""Looks at a model before training: which method would be wrong on it and why; mends are data that the guard applies."""

from lightning_explain.doctor.examination import MOST_ROWS, doctor, unexamined
from lightning_explain.doctor.table import acted_upon, table

__all__ = ["MOST_ROWS", "acted_upon", "doctor", "table", "unexamined"]
