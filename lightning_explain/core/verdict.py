"""Records of the doctor: its verdict on a method for a model, and the changes to the model that the method needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Canonizer:
    """A temporary change to the model that makes a method's backward rule correct; undone after the explanation.

    Args:
        kind: ``"deeplift"`` or ``"guided"``: every activation call gets a module of its own, with that backward rule.
            ``"inplace"`` and ``"recurrent"`` name changes that the isolation makes in every explanation.
        relu: Number of ReLU calls in one forward pass.
        elementwise: Number of calls of other elementwise functions in one forward pass.
        pool: Number of calls of maxima over windows in one forward pass.
    """

    kind: str
    relu: int = 0
    elementwise: int = 0
    pool: int = 0

    @property
    def calls(self) -> dict[str, int]:
        """Each family of calls (``relu``, ``elementwise``, ``pool``) to the number of modules it needs."""
        return {"relu": self.relu, "elementwise": self.elementwise, "pool": self.pool}


@dataclass(frozen=True)
class Verdict:
    """The doctor's finding about one method on one model: usable or not, why, and what to do.

    Args:
        method: The method's name.
        state: ``"fine"``; ``"canonized"``: correct, because the isolation changes the model temporarily; ``"warned"``:
            correct, but of little use; ``"refused"``: the map would be wrong.
        reason: Why.
        fix: What the user can do about it.
        canonizers: The temporary changes to the model that make the method correct.
    """

    method: str
    state: str
    reason: str = ""
    fix: str = ""
    canonizers: tuple[Canonizer, ...] = ()
