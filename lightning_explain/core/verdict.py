"""What is said of a method on a model, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Canonizer:
    """What the guard changes about a model while a method explains it.

    Args:
        kind: ``"deeplift"`` or ``"guided"``: every activation call gets a module of its own, with that rule. Others are what the guard
            does in every explanation: ``"inplace"``, ``"recurrent"``.
        relu: ReLU calls in one forward.
        elementwise: Calls of other elementwise functions.
        pool: Calls of maxima over windows.
    """

    kind: str
    relu: int = 0
    elementwise: int = 0
    pool: int = 0

    @property
    def calls(self) -> dict[str, int]:
        """How many modules each family of calls needs."""
        return {"relu": self.relu, "elementwise": self.elementwise, "pool": self.pool}


@dataclass(frozen=True)
class Verdict:
    """What the doctor says about one method on one model.

    Args:
        method: The method's name.
        state: ``"fine"``; ``"canonized"``: right, because the guard changes something; ``"warned"``: right, but of little use;
            ``"refused"``: it would be wrong.
        reason: Why.
        fix: What the user can do about it.
        canonizers: What the guard does about it.
    """

    method: str
    state: str
    reason: str = ""
    fix: str = ""
    canonizers: tuple[Canonizer, ...] = ()
