"""Methods that take one gradient at the input."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum

from lightning_explain.methods._captum import attribute, needs_gradient
from lightning_explain.types import Attribution, Rows, Subject


@dataclass(frozen=True)
class Saliency:
    """The gradient of the explained output (Simonyan et al. 2013; ``captum.attr.Saliency``).

    Args:
        abs: Take absolute values, as Captum does by default. Scores such as infidelity want ``abs=False``.
    """

    abs: bool = True

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "Saliency")
        return attribute(captum.Saliency(subject.forward).attribute, rows, abs=self.abs)


@dataclass(frozen=True)
class InputXGradient:
    """The input times the gradient (Shrikumar et al. 2016; ``captum.attr.InputXGradient``)."""

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "InputXGradient")
        return attribute(captum.InputXGradient(subject.forward).attribute, rows)


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient with negative parts cut at every ReLU module (Springenberg et al. 2014; ``captum.attr.GuidedBackprop``).

    Only ``nn.ReLU`` modules are guided; a functional ReLU is passed as in the plain gradient.
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "GuidedBackprop")
        return attribute(captum.GuidedBackprop(subject.forward).attribute, rows)
