"""Warnings that cannot end a training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_logger = logging.getLogger(__name__)


def warn_or_log(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns. Logs the text where warnings are errors (``python -W error``): a rank that raises here alone would leave the others."""
    try:
        warnings.warn(text, category, stacklevel=3)
    except Exception:
        # Without a handler of the user's, logging writes to stderr. A handler may raise, too.
        with suppress(Exception):
            _logger.warning(text)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Shows warnings inside, also those that the user's filters turn into errors: they are about code that is not the user's."""
    if not any(action == "error" for action, *_ in warnings.filters):
        yield
        return
    with warnings.catch_warnings():
        kept = [("default" if action == "error" else action, *rest) for action, *rest in warnings.filters]
        # Forgets, as assigning to the list does not, which warnings have been shown already.
        warnings.resetwarnings()
        warnings.filters[:] = kept  # type: ignore[index]
        yield
