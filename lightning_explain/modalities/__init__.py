"""What the inputs are: which units there are, where a map lies on them, how they are perturbed, which panels show them.

In: inputs, and attribution maps in the shape of an input or of a layer. Out: the answers, of one ``Modality`` for each input.
A new modality is a class in a file of its own and its line below. Must not import ``model``, ``engine``, ``render`` or anything above
them, nor Lightning or Captum. Begin reading with ``Modality`` in ``core/contracts.py``, then ``image.py``.
"""

from torch import Tensor

from lightning_explain.core.contracts import Modality
from lightning_explain.modalities.image import Image
from lightning_explain.modalities.plain import Plain

__all__ = ["Image", "Plain"]


def guess(inputs: tuple[Tensor, ...]) -> tuple[Modality, ...]:
    """What each input ``(N, ...)`` is, by its rank: the only place that tells an image from anything else."""
    return tuple(Image() if x.ndim == 4 else Plain() for x in inputs)
