"""What the inputs are: which units there are, where a map lies on them, how they are perturbed, which panels show them.

In: inputs, and attribution maps in the shape of an input or of a layer. Out: the answers, of one ``Modality`` for each input.
A new modality is a class in a file of its own and its line below. Must not import ``model``, ``engine``, ``render`` or anything above
them, nor Lightning or Captum. Begin reading with ``Modality`` in ``core/contracts.py``, then ``image.py``.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.core.naming import unlike
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.modalities.image import Image
from lightning_explain.modalities.plain import Plain
from lightning_explain.modalities.series import TimeSeries
from lightning_explain.modalities.spectrogram import Spectrogram
from lightning_explain.modalities.tabular import Tabular
from lightning_explain.modalities.text import Text
from lightning_explain.modalities.video import Video, is_video
from lightning_explain.modalities.volume import Volume

__all__ = ["Image", "Plain", "Spectrogram", "Tabular", "Text", "TimeSeries", "Video", "Volume"]


def guess(inputs: tuple[Tensor, ...], facts: Sequence[InputFacts] = ()) -> tuple[Modality, ...]:
    """What each input ``(N, ...)`` is, by its rank, its dtype and what the model does with it: the only place that decides that.

    Args:
        inputs: The inputs.
        facts: What preflight saw of each; without, whole numbers are not known to be text.
    """
    numbers = [x.ndim for x in inputs if x.is_floating_point()]
    beside = bool(numbers) and max(numbers) <= 2
    return tuple(_guess(x, facts[i] if facts else InputFacts(), beside) for i, x in enumerate(inputs))


def _guess(x: Tensor, facts: InputFacts, beside_table: bool) -> Modality:
    if x.ndim == 4:
        return Image()
    if x.is_floating_point():
        by_rank: dict[int, type[Modality]] = {
            1: Tabular,
            2: Tabular,
            3: TimeSeries,
            5: Video if x.ndim == 5 and is_video(x, facts) else Volume,
        }
        return by_rank.get(x.ndim, Plain)()
    if x.ndim == 2 and facts.embeddings:
        return Text()
    return Tabular() if (beside_table or facts.by_column) and x.ndim in (1, 2) else Plain()


def named_features(inputs: tuple[Tensor, ...], modalities: Sequence[Modality]) -> list[str]:
    """The names of the features of all inputs ``(N, ...)``, one after the other; each is a name of its own."""
    return unlike(name for x, modality in zip(inputs, modalities, strict=True) for name in modality.named(x))


def kinds_of_panels() -> dict[str, tuple[str, ...]]:
    """The kinds of panels of each class."""
    return {name: globals()[name].kinds for name in __all__ if globals()[name].kinds}


def stored(modalities: tuple[Modality, ...]) -> list[dict[str, Any]]:
    """Modalities that are bound to a probe as JSON can hold them."""
    return [{"class": type(one).__name__, **(vars(one) if is_dataclass(one) else {})} for one in modalities]


def restored(found: Any) -> tuple[Modality, ...] | None:
    """The modalities again; ``None`` if one of them is a class of the user's own.

    Raises:
        ValueError: If it is not what :func:`stored` returns.
    """
    kinds = {name: globals()[name] for name in __all__}
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and isinstance(one.get("class"), str) for one in found
    ):
        raise ValueError("modalities is not a list of dictionaries with a class")
    if any(one["class"] not in kinds for one in found):
        return None
    made = []
    for one in found:
        kind = kinds[one["class"]]
        known = {f.name: one[f.name] for f in fields(kind) if f.name in one}
        if isinstance(known.get("vocabulary"), dict):  # The keys of JSON are strings.
            known["vocabulary"] = {int(token): word for token, word in known["vocabulary"].items()}
        made.append(kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}))
    return tuple(made)


def of_probe(probe: Probe) -> tuple[Modality, ...]:
    """What the inputs of a probe are: as preflight settled it, or else guessed without the model."""
    found, inputs = probe.modalities, as_tuple(probe.inputs)
    if isinstance(found, Modality):
        return (found,) * len(inputs)
    return found if isinstance(found, tuple) and len(found) == len(inputs) else guess(inputs)
