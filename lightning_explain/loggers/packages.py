"""Lightning's classes in both of its packages: those of ``lightning.pytorch`` in, with those of ``pytorch_lightning`` out."""

from __future__ import annotations

import sys
from typing import Any


def in_both(*classes: type) -> tuple[type[Any], ...]:
    """The classes, and those of ``pytorch_lightning`` with the same names if that package is imported.

    The two packages hold the same code as different classes, and people use both.

    Args:
        classes: Classes of ``lightning.pytorch``.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> from lightning_explain.loggers.packages import in_both
        >>> isinstance(CSVLogger("."), in_both(CSVLogger))
        True
    """
    named = ((c.__module__.replace("lightning.pytorch", "pytorch_lightning", 1), c.__name__) for c in classes)
    others = (getattr(sys.modules.get(module), name, None) for module, name in named)
    return (*classes, *(other for other in others if other is not None))
