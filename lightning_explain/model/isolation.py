"""The isolation: the only context in which a model is touched; on exit every state that changed is restored.

Each *state saver* is a context manager that saves and restores one kind of state. They are listed in ``STATE_SAVERS``;
a test removes each in turn and checks that non-interference (invariant 1) then fails.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, TypeAlias
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.signals import HeldSignals, undone
from lightning_explain.core.warn import warn_or_log
from lightning_explain.model.inventory import ModuleInventory, size_of
from lightning_explain.model.moved import reported
from lightning_explain.model.reachable import EMPTY, Container, in_slot
from lightning_explain.model.state_dicts import training_state

Context: TypeAlias = "Callable[[], AbstractContextManager[Any]]"
StateSaver = Callable[[ModuleInventory], AbstractContextManager[None]]


class Run:
    """Calls the model inside the isolation: ``run(function, *arguments, **keywords)`` returns ``function(*arguments, **keywords)``.

    Args:
        signals: Those that wait.
        forward_context: Entered around each call.
        inventory: Of the model.
    """

    def __init__(self, signals: HeldSignals, forward_context: Context, inventory: ModuleInventory) -> None:
        self._signals, self._forward_context, self._inventory = signals, forward_context, inventory

    def __call__(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Returns ``function(*arguments, **keywords)``, which Ctrl-C may interrupt."""
        with self._signals.interruptible(), self._forward_context():
            return function(*arguments, **keywords)

    def remove_hooks(self) -> None:
        """Gives the modules of the model the hooks that they had when the isolation began."""
        self._inventory.restore_hooks()


_NOTHING = nullcontext()
"""For a model that has nothing of what a state saver puts back."""


def _set(things: Sequence[Any], name: str, value: object) -> AbstractContextManager[None]:
    """Gives an attribute of all things a value, and puts back what each had."""
    return _having(things, name, value) if things else _NOTHING


@contextmanager
def _having(things: Sequence[Any], name: str, value: object) -> Iterator[None]:
    before: list[tuple[Any, Any]] = []
    try:
        for thing in things:
            had = getattr(thing, name)
            before.append((thing, had))
            if had is not value:
                _give(thing, name, value)
        yield
    finally:
        with undone() as actions:
            actions += [
                partial(_give, thing, name, had) for thing, had in before if getattr(thing, name, EMPTY) is not had
            ]


def _give(thing: Any, name: str, value: object) -> None:
    """Sets an attribute; of a module without its search for parameters and buffers, unless its class has one of its own."""
    if isinstance(thing, nn.Module) and name in vars(thing) and type(thing).__setattr__ is nn.Module.__setattr__:
        vars(thing)[name] = value
    else:
        setattr(thing, name, value)


def _inplace(inventory: ModuleInventory) -> AbstractContextManager[None]:
    found = (module for module in inventory.modules if _may_have(module, "inplace"))
    eager = (module for module in found if not isinstance(module, torch.jit.ScriptModule))
    return _set([module for module in eager if getattr(module, "inplace", None) is True], "inplace", False)


def _may_have(module: nn.Module, name: str) -> bool:
    """Whether a module may have an attribute; faster than looking it up, which takes long where there is none."""
    kind = type(module)
    return name in vars(module) or hasattr(kind, name) or kind.__getattr__ is not nn.Module.__getattr__


@contextmanager
def _gradients(inventory: ModuleInventory) -> Iterator[None]:
    # Without parameter gradients a backward pass costs less, and nothing is accumulated in ``.grad``.
    with _set(inventory.parameters, "grad", None), _set(inventory.parameters, "requires_grad", False):
        yield


def _tensors(inventory: ModuleInventory) -> AbstractContextManager[None]:
    """Restores the values of buffers, and of tensors and arrays in attributes (metric states, caches)."""
    return _with_values(inventory) if any(True for _ in _tensors_in(inventory)) or inventory.arrays else _NOTHING


@contextmanager
def _with_values(inventory: ModuleInventory) -> Iterator[None]:
    groups = _by_storage({id(tensor): tensor for tensor in _tensors_in(inventory)}.values())
    _mention_size(inventory, groups)
    with undone() as actions:
        for tensors in _taken_together(groups):
            flat, values = _flattened(tensors)
            inventory.copies.update(zip(map(id, tensors), values, strict=True))
            actions.append(partial(_put_all_back, tensors, flat, values))
        for group in groups:
            for tensor, value in _copies(group):
                inventory.copies[id(tensor)] = value
                actions.append(partial(_put_back, tensor, value))
        actions += [partial(_put_array_back, array, copy.copy(array)) for array in inventory.arrays]
        yield


def _by_storage(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups that share a storage, as views do; a tensor that is not a plain one is a group of its own."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        key = (tensor.device, tensor.untyped_storage().data_ptr()) if _is_plain(tensor) else id(tensor)
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


TOGETHER = 2**16
"""Bytes of a tensor up to which it is copied, and compared afterwards, together with others of its dtype."""


def _taken_together(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    """Takes the small tensors with a storage of their own out of the groups: lists of several of one dtype and device."""
    alike: dict[Any, list[Tensor]] = {}
    for tensor, *others in groups:
        small = not others and tensor.numel() * tensor.element_size() <= TOGETHER
        if small and _is_plain(tensor) and tensor.is_contiguous():
            alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    found = [tensors for tensors in alike.values() if len(tensors) > 1]
    taken = {id(tensor) for tensors in found for tensor in tensors}
    groups[:] = [group for group in groups if id(group[0]) not in taken]
    return found


@torch.no_grad()
def _flattened(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A copy of several tensors as one, and the parts of it that are copies of each."""
    flat = _flatten_dense_tensors(tensors)
    return flat, list(_unflatten_dense_tensors(flat, tensors))


@torch.no_grad()
def _put_all_back(tensors: list[Tensor], flat: Tensor, values: list[Tensor]) -> None:
    """Puts back what several tensors were; almost always all of them are, which one comparison shows."""
    with suppress(RuntimeError):  # One is on another device by now, or sparse.
        same = all(tensor.shape == value.shape for tensor, value in zip(tensors, values, strict=True))
        if same and _same_bits(_flatten_dense_tensors(tensors), flat):
            return
    with undone() as actions:
        actions += [partial(_put_back, tensor, value) for tensor, value in zip(tensors, values, strict=True)]


_AS_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(tensor: Tensor, value: Tensor) -> bool:
    """Whether two tensors of one shape hold the same, also NaN and the sign of zero."""
    bits = _AS_BITS.get(value.element_size()) if _is_plain(tensor) and _is_plain(value) else None
    if bits is None or tensor.dtype != value.dtype:
        return tensor.dtype == value.dtype and torch.equal(tensor, value)
    return torch.equal(tensor.view(bits), value.view(bits))


def _is_plain(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _size(group: list[Tensor]) -> int:
    """Bytes of the copies of a group."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in group if tensor.layout == torch.strided)
    return min(size, group[0].untyped_storage().nbytes()) if _is_plain(group[0]) else size


def _copies(group: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of a group with a copy; nothing is copied twice where the tensors overlap."""
    if not _is_plain(group[0]) or sum(tensor.numel() * tensor.element_size() for tensor in group) == _size(group):
        return [(tensor, tensor.detach().clone()) for tensor in group]
    whole = torch.empty(0, dtype=torch.uint8, device=group[0].device).set_(group[0].untyped_storage())
    copy = whole.clone()
    storage = copy.untyped_storage()
    parts = [(t, t.new_empty(0).set_(storage, t.storage_offset(), t.shape, t.stride())) for t in group]
    # The whole is put back first, because parts that overlap may not be writable.
    return [*parts, (whole, copy)]


LARGE = 64 * 2**20
"""Bytes of buffers and other tensors in a model from which on it is mentioned that they are copied."""
_MENTIONED: WeakSet[nn.Module] = WeakSet()


def _mention_size(inventory: ModuleInventory, groups: list[list[Tensor]]) -> None:
    """Mentions, once for each model, what copying its tensors takes."""
    if inventory.model in _MENTIONED or sum(map(size_of, chain(*groups, inventory.arrays))) < LARGE:
        return
    total = sum(map(_size, groups)) + sum(map(size_of, inventory.arrays))
    if total < LARGE:
        return
    _MENTIONED.add(inventory.model)
    sizes = [(_size(group), group[0]) for group in groups] + [(size_of(array), array) for array in inventory.arrays]
    size, largest = max(sizes, key=lambda entry: entry[0])
    warn_or_log(
        f"Each explanation copies {total / 2**20:.0f} MB of buffers and other tensors, because the model may write into them; the "
        f"largest is {inventory.walk.path(largest)!r} ({size / 2**20:.0f} MB). One that it only reads when it is explained can be "
        "nn.Parameter(..., requires_grad=False), which is not copied."
    )


def _put_array_back(array: Any, value: Any) -> None:
    if not isinstance(array, np.ndarray):
        array[:] = value
        return
    if array.shape != value.shape:
        array.resize(value.shape, refcheck=False)
    array[...] = value


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    if tensor.dtype != value.dtype or tensor.device != value.device:
        tensor.data = value.clone()
        return
    if tensor.shape != value.shape:
        tensor.resize_(value.shape)
    # Unchanged tensors are skipped, as they may not be writable (views, expanded tensors). Sparse ones cannot be
    # compared.
    if tensor.layout != torch.strided or not _same_bits(tensor, value):
        tensor.copy_(value)


def _tensors_in(inventory: ModuleInventory) -> Iterator[Tensor]:
    # Tensors made in inference mode cannot change outside of it.
    yield from (value for value in inventory.tensors if not value.is_meta and not value.is_inference())
    # Parameters change in optimizer steps only, except in an embedding with max_norm, whose forward rescales them.
    for module in inventory.modules:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            yield module.weight


def _usable(inventory: ModuleInventory) -> AbstractContextManager[None]:
    """Replaces tensors made in inference mode by copies: outside of it they cannot be changed or differentiated."""
    # The state saver "attributes" puts the originals back.
    for container, key, value in inventory.holders(tensor for tensor in inventory.tensors if tensor.is_inference()):
        if isinstance(container, (dict, list)):
            container[key] = value.clone()
    return _NOTHING


# A subclass may have its own idea of when it is empty.
_BUILT_IN = frozenset({dict, OrderedDict, list, deque, set})


@contextmanager
def _kept(containers: Iterable[Container]) -> Iterator[None]:
    """Restores which objects are in some containers."""
    restore = restorer(containers)
    try:
        yield
    finally:
        restore()


def restorer(containers: Iterable[Container]) -> Callable[[], None]:
    """A function that restores which objects are in some containers now."""
    # Most are empty, such as those of hooks, and stay so: nothing is copied of them.
    found = list(containers)
    if _BUILT_IN.issuperset(map(type, found)):
        empty, filled = [c for c in found if not c], [c for c in found if c]
    else:
        empty = [c for c in found if type(c) in _BUILT_IN and not c]
        filled = [c for c in found if type(c) not in _BUILT_IN or c]
    others = [(c, dict(c) if isinstance(c, dict) else list(c)) for c in filled]

    def restore() -> None:
        with undone() as actions:
            actions += [partial(_restore, c, []) for c in empty if c]
            actions += [partial(_restore, *pair) for pair in others if not _unchanged(*pair)]

    return restore


@contextmanager
def _hooks(inventory: ModuleInventory) -> Iterator[None]:
    inventory.restore_hooks = restorer(inventory.hooks)
    try:
        yield
    finally:
        inventory.restore_hooks()


def _unchanged(container: Any, saved: Any) -> bool:
    """Whether a container holds what it did, in the same order. By identity: keys may be tensors, which are compared element by element."""
    try:
        if len(container) != len(saved) or not all(map(is_, container, saved)):
            return False
        return not isinstance(saved, dict) or all(map(is_, dict.values(container), saved.values()))
    except Exception:
        return False  # To restore it raises the error, after all others are restored.


def _restore(container: Any, saved: Any) -> None:
    if len(container) == len(saved) and all(map(is_, container, saved)):
        # The size stays, because another thread may be reading the state of the model.
        for key, value in saved.items() if isinstance(container, dict) else ():
            if container[key] is not value:
                container[key] = value
        return
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(saved)


@contextmanager
def _filled(slots: list[tuple[Any, str]]) -> Iterator[None]:
    """Restores attributes in slots."""
    with undone() as actions:
        actions += [partial(_fill, thing, name, in_slot(thing, name)) for thing, name in slots]
        yield


def _fill(thing: Any, name: str, value: object) -> None:
    if in_slot(thing, name) is value:
        return
    if value is EMPTY:
        object.__delattr__(thing, name)
    else:
        object.__setattr__(thing, name, value)


def _eager(inventory: ModuleInventory) -> AbstractContextManager[None]:
    """Runs compiled code eagerly, because a compiled module that has already run silently ignores new hooks."""
    # If dynamo was never imported, nothing is compiled; importing it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else _NOTHING


def _recurrent(inventory: ModuleInventory) -> AbstractContextManager[None]:
    """Turns cuDNN off for models with recurrent layers: it cannot run their backward pass in eval mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in inventory.modules)
    return _set([torch.backends.cudnn] if recurrent else [], "enabled", False)


@contextmanager
def _fast_path(inventory: ModuleInventory) -> Iterator[None]:
    """Turns torch's fast path of transformers off: without gradients it gives other outputs where padding is masked."""
    with undone() as actions:
        actions.append(partial(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()))
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def _grad_mode(inventory: ModuleInventory) -> Iterator[None]:
    # Within inference mode enable_grad() alone records no graph.
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _sharded(inventory: ModuleInventory) -> AbstractContextManager[None]:
    """Reshards FSDP2 modules before and after: a forward leaves gathered weights where training needs sharded ones."""
    # Recognized by their methods, because importing FSDP is slow.
    kinds = {
        kind
        for kind in set(map(type, inventory.modules))
        if hasattr(kind, "reshard") and hasattr(kind, "set_reshard_after_forward")
    }
    return _resharded([module for module in inventory.modules if type(module) in kinds]) if kinds else _NOTHING


@contextmanager
def _resharded(modules: Sequence[Any]) -> Iterator[None]:
    with undone() as actions:
        for module in modules:
            module.reshard()
            actions.append(module.reshard)
        yield


# Entered in this order, so restored in reverse order.
STATE_SAVERS: dict[str, StateSaver] = {
    "state_dict": training_state,
    "moved": reported,
    "sharded": _sharded,
    "random_state": lambda inventory: preserved_random_state(*inventory.generators),
    "grad_mode": _grad_mode,
    # Which objects are in the attributes and in the containers below: also buffers and submodules.
    "attributes": lambda inventory: _kept(c for c in inventory.containers if not isinstance(c, (tuple, frozenset))),
    "slots": lambda inventory: _filled(inventory.slots) if inventory.slots else _NOTHING,
    "hooks": _hooks,
    "usable": _usable,
    "tensors": _tensors,
    "gradients": _gradients,
    # Set directly, because an overridden train() or eval() may do more than set flags (merge weights, freeze layers).
    "modes": lambda inventory: _set(inventory.modules, "training", False),
    "inplace": _inplace,
    "recurrent": _recurrent,
    "fast_path": _fast_path,
    "eager": _eager,
}


@contextmanager
def explaining(model: nn.Module, forward_context: Context = nullcontext) -> Iterator[Run]:
    """A context in which a model can be explained; yields the function that calls it, and restores everything on exit.

    Inside, every submodule is in eval mode, parameters require no gradient, in-place activations work out of place,
    compiled code runs eagerly, and gradients are available even within ``torch.inference_mode``. On exit, also after an
    exception, these are restored: training flags, ``.grad``, ``requires_grad``, buffers, plain attributes (metric
    states), hooks, and every random generator.

    Args:
        model: The module, as the training loop holds it.
        forward_context: A context entered around each forward pass, but not around the backward pass, such as autocast.

    Yields:
        What calls the model, inside ``forward_context``.
    """
    signals = HeldSignals()
    with signals, undone() as actions:
        inventory = ModuleInventory(model)
        for saver in STATE_SAVERS.values():
            context = saver(inventory)
            context.__enter__()
            actions.append(partial(context.__exit__, None, None, None))
        yield Run(signals, forward_context, inventory)
