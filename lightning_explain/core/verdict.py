"""Records of the doctor: its verdict on a method for a model, and the changes to the model that the method needs."""

from __future__ import annotations

from dataclasses import dataclass


class RefusedError(ValueError):
    """What was asked for cannot be carried out on the model; the message names all of it and a configuration that would run."""


@dataclass(frozen=True)
class Verdict:
    """The doctor's finding about one method on one model: usable or not, why, and what to do.

    Args:
        method: The method's name.
        state: ``"fine"``; ``"canonized"``: correct, because the isolation changes the model temporarily; ``"warned"``:
            correct, but of little use; ``"refused"``: the map would be wrong.
        reason: Why.
        fix: What the user can do about it.
    """

    method: str
    state: str
    reason: str = ""
    fix: str = ""
