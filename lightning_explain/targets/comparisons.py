"""Outputs in that are compared with something: a reconstruction with its input, an embedding with a reference. One number each out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightning_explain.core.contracts import Target
from lightning_explain.core.validation import check_choice, is_number, refused
from lightning_explain.model.clean import CleanSamples


def reconstructed(outputs: Tensor, inputs: tuple[Any, ...]) -> Tensor | None:
    """The input that outputs ``(N, ...)`` reconstruct: the first of their shape, else the first that has it flattened or without 1s."""
    tensors = [x for x in inputs if isinstance(x, Tensor) and x.ndim > 1 and len(x) == len(outputs)]
    same = next((x for x in tensors if x.shape == outputs.shape), None)
    return next((x for x in tensors if _fits(x, outputs)), None) if same is None else same


def _fits(x: Tensor, outputs: Tensor) -> bool:
    if outputs[0].numel() == 1:
        return False  # One number has no shape that could tell.
    sizes, own = ([size for size in value.shape[1:] if size != 1] for value in (x, outputs))
    return sizes == own or (outputs.ndim == 2 and x[0].numel() == outputs.shape[1])


@dataclass(frozen=True)
class ReconstructionError(Target):
    """How far an autoencoder's output is from its input: the anomaly score ``|x - g(x)|**norm``, averaged over all numbers of a sample.

    The input of the score is the input of the network, as in practice: at every point of a path, both move. So a map says which places
    make the sample an anomaly, and a removed place takes its own error with it.

    Args:
        reduction: ``"mean"`` or ``"sum"`` over the numbers of a sample.
        norm: The exponent: 2 for the squared error, 1 for the absolute one.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> t.ReconstructionError()(torch.tensor([[1.0, 4.0]]), (x,)).tolist()
        [2.0]
    """

    takes_inputs = True

    reduction: str = "mean"
    norm: float = 2

    def __post_init__(self) -> None:
        check_choice("ReconstructionError", "reduction", self.reduction, ("mean", "sum"))
        if not is_number(self.norm) or not 1 <= self.norm < float("inf"):
            raise refused("ReconstructionError", "norm", self.norm, "a number of at least 1", ValueError)

    def __call__(self, outputs: Tensor, inputs: tuple[Any, ...] = ()) -> Tensor:
        """The error ``(N,)`` of outputs ``(N, ...)``.

        Args:
            outputs: The reconstructions.
            inputs: What the model was called with; the first tensor of the outputs' shape counts, else the first that has it flattened.

        Raises:
            ValueError: If there is none.
        """
        own = reconstructed(outputs, inputs)
        if own is None:
            shapes = [tuple(x.shape) for x in inputs if isinstance(x, Tensor)]
            raise ValueError(
                f"{self} needs an output of the shape of an input {shapes}, got {tuple(outputs.shape)}; give output_fn=lambda output: ..., "
                "which picks the reconstruction, in the shape of the input."
            )
        difference = outputs.flatten(1) - own.flatten(1)
        errors = difference.square() if self.norm == 2 else difference.abs().pow(self.norm)
        found: Tensor = errors.mean(1) if self.reduction == "mean" else errors.sum(1)
        return found


@dataclass(frozen=True, eq=False)
class Similarity(Target):
    """The cosine similarity of each sample's embedding to a reference, for embeddings, self-supervised, contrastive and siamese networks.

    The similarity of an embedding to itself is 1 and has no gradient there, so the reference must be another one.

    Args:
        to: ``None``: the model returns two embeddings ``(N, D)``, of a pair or of two views, which are compared. Or a reference: a tensor
            ``(D,)`` for all samples, such as the embedding of a query; or ``(C, D)``, one for each class, such as the mean embedding of
            the class, of which that of the sample's label counts. A list of numbers does the same.

    Raises:
        ValueError: If ``to`` has another form.

    Example:
        >>> import torch
        >>> from lightning_explain import Probe, explain, targets as t
        >>> encoder, samples = torch.nn.Linear(4, 3), Probe(torch.randn(2, 4), targets=torch.tensor([1, 0]))
        >>> means = torch.eye(3)[:2]  # One embedding for each class.
        >>> report = explain(encoder, samples, ["Saliency"], [], target=t.Similarity(means))
        >>> bool((report.values.abs() <= 1).all())
        True
    """

    to: Any = None

    def __post_init__(self) -> None:
        if self.to is None:
            return
        try:
            given = torch.as_tensor(self.to).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise refused("Similarity", "to", self.to, "None or a tensor (D,) or (C, D)", ValueError) from error
        if given.ndim not in (1, 2) or not given.is_floating_point():
            allowed = "None or floating-point numbers (D,) or (C, D)"
            raise refused("Similarity", "to", f"{given.dtype} {tuple(given.shape)}", allowed, ValueError)
        object.__setattr__(self, "to", given.clone())

    def output(self, returned: Any) -> Tensor | None:
        """Both embeddings ``(N, 2, D)``, if they are compared with each other."""
        if self.to is not None:
            return None
        parts = returned[:2] if isinstance(returned, (tuple, list)) else ()
        if len(parts) < 2 or not all(isinstance(x, Tensor) and x.shape == parts[0].shape for x in parts):
            raise ValueError(
                "Similarity() compares two embeddings, but the model does not return two tensors of one shape; give the reference, as "
                "Similarity(to=embedding), or forward_fn=lambda model, a, b: (model(a), model(b)), which returns both."
            )
        return torch.stack(tuple(parts), 1)

    def __call__(self, outputs: Tensor, sample: CleanSamples) -> Tensor:  # type: ignore[override]
        """The similarity ``(N,)`` of embeddings ``(N, D)``, or of pairs ``(N, 2, D)``.

        Raises:
            ValueError: If the reference has another size, or labels are needed and not there.
        """
        if self.to is None:
            pair = outputs.flatten(2)
            return cosine_similarity(pair[:, 0], pair[:, 1], dim=1)
        embeddings = outputs.flatten(1)
        reference: Tensor = self.to.to(embeddings)
        if reference.shape[-1] != embeddings.shape[1]:
            raise ValueError(
                f"the reference has {reference.shape[-1]} numbers, but embeddings have {embeddings.shape[1]}; give one of such embeddings"
            )
        if reference.ndim == 2 and len(reference) > 1:
            label = sample.label
            if label is None or label.ndim != 1 or label.is_floating_point():
                came = "no labels" if label is None else f"labels {label.dtype} {tuple(label.shape)}"
                raise ValueError(
                    f"a reference for each class needs whole labels (N,), got {came}; give one reference (D,)"
                )
            reference = reference[label]
        return cosine_similarity(embeddings, reference.reshape(-1, embeddings.shape[1]), dim=1)
