"""A warning that cannot end a training."""

from __future__ import annotations

import logging
import warnings

_logger = logging.getLogger(__name__)


def warn_or_log(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns. Logs the text where warnings are errors (``python -W error``): a rank that raises here alone would leave the others."""
    try:
        warnings.warn(text, category, stacklevel=3)
    except Exception:
        # Without a handler of the user's, logging writes to stderr.
        _logger.warning(text)
