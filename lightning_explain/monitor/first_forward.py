"""The user's own first call of the module, and how its batch was bound, in; where the two differ, out. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_explain.core.call import EACH, Place, leaves
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.warn import shown_warnings
from lightning_explain.probes.parts import is_label, tensors_in
from lightning_explain.probes.signature import Signature, signature_of


class FirstForward:
    """Compares, by identity of tensors, what the user's step passes where with how the explanations bind that batch.

    It looks at one call of the module in the first batch of each stage, until it finds tensors of the batch in one. Where it finds
    none, because the step computes what it passes, it says nothing.

    Args:
        mismatch: Receives the difference, as the beginning of a sentence.
    """

    def __init__(self, mismatch: Callable[[str], None]) -> None:
        self._mismatch = mismatch
        self.begin_again()

    def begin_again(self) -> None:
        """Forgets what was compared, because another run begins."""
        self._tried: set[str] = set()
        self._handle: RemovableHandle | None = None
        self._compared = False

    @property
    def watches(self) -> bool:
        """Whether the module is hooked now."""
        return self._handle is not None

    def is_over(self, stage: str) -> bool:
        """Whether no call of a stage is to be looked at any more."""
        return self._compared or stage in self._tried

    def watch(self, stage: str, module: nn.Module, batch: Any, probe: Probe, read: Callable[[Any], Probe]) -> None:
        """Hooks the module for the first batch of a stage.

        Args:
            stage: The stage of the Trainer.
            module: The module; one that is compiled as a whole is left alone.
            batch: The batch that the step is about to receive.
            probe: The fixed samples.
            read: Reads a batch as the samples were read.
        """
        if self.is_over(stage):
            return
        self._tried.add(stage)
        signature = signature_of(module)
        compiled = getattr(module, "_compiled_call_impl", None) or getattr(module, "_compiler_ctx", None)
        if compiled or signature is None:
            return
        try:
            with preserved_random_state():
                own = read(batch)
        except Exception:
            # Not a batch like those of the samples.
            return
        if any(place[-1] == EACH for place in own.places):
            # A list of images is no tensor of the batch once it is padded.
            return
        forms = [([_by_name(p, signature) for p in x.places], len(as_tuple(x.inputs))) for x in (own, probe)]
        if forms[0] == forms[1]:

            def compare(module: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                # It runs inside of the user's own step, which goes on whatever is passed in whatever containers.
                with suppress(Exception), shown_warnings():
                    if not _is_step(positional, batch):
                        self.leave()
                        self._compare(_passed(positional, keywords, signature), own, batch, signature)

            self._handle = module.register_forward_pre_hook(compare, with_kwargs=True)

    def leave(self) -> None:
        """Removes the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _compare(self, theirs: dict[Place, Any], own: Probe, batch: Any, signature: Signature) -> None:
        names = {id(value): place for place, value in tensors_in(batch)}
        found = {place: value for place, value in theirs.items() if isinstance(value, Tensor) and id(value) in names}
        if not found:
            return
        self._compared = True
        ours = {_by_name(place, signature): x for place, x in zip(own.places, own.arguments, strict=True)}
        ours = {place: x for place, x in ours.items() if isinstance(x, Tensor)}
        known = {place: x for place, x in ours.items() if id(x) in names}
        other = [
            p for p, x in found.items() if (known.get(p, x) is not x) or (p not in ours and not _is_label(p, x, own))
        ]
        unpassed = [p for p in ours if theirs.get(p) is None and (p in theirs or (p[0],) not in theirs)]
        if other or unpassed:
            self._mismatch(
                f"The module is called with {_shown(theirs, names)}, but the explanations call it with {_shown(ours, names)}"
            )


def _is_step(positional: tuple[Any, ...], batch: Any) -> bool:
    """Whether this is the call by which DDP and FSDP run the whole step, whose arguments are the batch and its index."""
    if len(positional) < 2 or not isinstance(positional[1], int):
        return False
    return {id(x) for _, x in tensors_in(positional[0])} == {id(x) for _, x in tensors_in(batch)}


def _by_name(place: Place, signature: Signature) -> Place:
    first, *keys = place
    if isinstance(first, int) and first < len(signature.positional):
        first = signature.positional[first]
    return (first, *keys)


def _passed(positional: tuple[Any, ...], keywords: Mapping[str, Any], signature: Signature) -> dict[Place, Any]:
    """What was passed, by its place, whose arguments are names where they have one."""
    given: list[tuple[int | str, Any]] = [*enumerate(positional), *keywords.items()]
    return {_by_name(p, signature): x for key, value in given for p, x in leaves(value, (key,))}


def _is_label(place: Place, x: Tensor, own: Probe) -> bool:
    """Whether a tensor is the labels, or what they are a view of, or goes where labels go."""
    labels = [*([] if own.targets is None else [own.targets]), *own.labels.values()]
    return any(is_label(str(key)) for key in place) or any(one is x or one._base is x for one in labels)


def _shown(call: Mapping[Place, Any], names: Mapping[int, Place]) -> str:
    """A call in words: ``image=batch['reference'], mask=...``."""

    def subscripts(keys: Any) -> str:
        return "".join(f"[{key!r}]" for key in keys)

    def value(x: Any) -> str:
        return f"batch{subscripts(names[id(x)])}" if id(x) in names else "..."

    return ", ".join(f"{place[0]}{subscripts(place[1:])}={value(x)}" for place, x in call.items())
