"""Objects in; memory that another process can map, and there the same objects out, whose tensors and arrays lie in that memory.

The memory has no name, so nothing is left of it when the last process that has it open ends, however it ends.
"""

from __future__ import annotations

import copyreg
import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import cloudpickle  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

Blocks: TypeAlias = "tuple[tuple[int, int], ...]"
"""Offset and size of each block, in bytes."""
StateSent: TypeAlias = "Callable[[nn.Module, dict[str, Any]], dict[str, Any]]"
"""Takes a module and its state, and returns what is sent of it."""

# That of torch's own memory: how a kernel divides its work can depend on it, and with it the last digit.
_ALIGNED = 64
_GROWTH = 2**22  # bytes


@dataclass(frozen=True)
class Layout:
    """Where the parts of an object lie in its memory.

    Args:
        buffers: The pickle itself, and after it the arrays.
        storages: The storages of all tensors.
    """

    buffers: Blocks
    storages: Blocks


class SharedMemory:
    """Memory without a name that grows as needed. Another process receives its descriptor.

    Args:
        descriptor: That of memory which another process has written; ``None``: new memory.

    Example:
        >>> import os, torch
        >>> from lightning_explain.core.shared_memory import SharedMemory
        >>> memory = SharedMemory()
        >>> layout = memory.write({"weight": torch.ones(2)})
        >>> other = SharedMemory(os.dup(memory.descriptor))  # in another process
        >>> other.read(layout)
        {'weight': tensor([1., 1.])}
        >>> memory.close(), other.close()
        (None, None)
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _new() if descriptor is None else descriptor
        self._map: mmap.mmap | None = None

    def write(
        self, value: Any, known: Mapping[int, int] | None = None, sent: StateSent = lambda module, state: state
    ) -> Layout:
        """Copies an object into the memory, in the place of what was there, and returns how it lies there.

        Tensors that share a storage share it again; tensors of accelerators are copied to the CPU. Gradients are left out.

        Args:
            value: Whatever cloudpickle can pickle; functions and classes of ``__main__`` too.
            known: The numbers of objects that the other process has already, by their ``id``.
            sent: Takes a module and its state, and returns the state that is sent.

        Raises:
            Exception: If it cannot be pickled, as pickle says it.
            OSError: If there is not enough memory.
        """
        content, buffers, storages = io.BytesIO(), list[pickle.PickleBuffer](), list[Tensor]()
        _Packer(content, known or {}, storages, buffers.append, sent).dump(value)
        parts = [content.getbuffer(), *(buffer.raw() for buffer in buffers)]
        sizes = [*(part.nbytes for part in parts), *(storage.numel() for storage in storages)]
        places = tuple(zip(_starts(sizes), sizes, strict=True))
        layout = Layout(places[: len(parts)], places[len(parts) :])
        space = self._mapped(sum(map(_aligned, sizes)))
        for (start, size), part in zip(layout.buffers, parts, strict=True):
            space[start : start + size] = part
        # With what lies between them, in few calls of torch, because a large model has hundreds of tensors.
        spaces = [part for _, size in layout.storages for part in (size, _aligned(size) - size)]
        if any(spaces):
            everything = torch.frombuffer(space, dtype=torch.uint8, count=sum(spaces), offset=layout.storages[0][0])
            torch._foreach_copy_(everything.split(spaces)[::2], storages)
        return layout

    def read(self, layout: Layout, known: Sequence[Any] = (), device: str | None = None) -> Any:
        """The object, whose tensors and arrays lie in the memory. To write into them does not change what others read.

        Args:
            layout: What :meth:`write` returned.
            known: The objects that are only named in it, by their numbers.
            device: Where tensors of accelerators go; ``None``: where they were.
        """
        end = max(start + size for start, size in (*layout.buffers, *layout.storages))
        space = mmap.mmap(self.descriptor, end, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        parts = [memoryview(space)[start : start + size] for start, size in layout.buffers]
        storages = [_storage(space, start, size) for start, size in layout.storages]
        with _reading(_Source(known, storages, device)):
            return pickle.loads(parts[0], buffers=parts[1:])

    def close(self) -> None:
        """Gives the memory back, once nothing that was read from it is used any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self._map, self.descriptor = None, -1

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            # More than is needed, because histories grow, and to map it again takes longer than to copy.
            size = -(-size // _GROWTH) * _GROWTH
            if hasattr(os, "posix_fallocate"):
                # Otherwise the process would be killed when it writes where there is no room.
                os.posix_fallocate(self.descriptor, 0, size)
            else:
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, size)
        return self._map


def _new() -> int:
    """The descriptor of a file that has no name any more."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("lightning_explain")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    start = 0
    for size in sizes:
        yield start
        start += _aligned(size)


def _storage(space: mmap.mmap, start: int, size: int) -> Tensor:
    if not size:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(space, dtype=torch.uint8, count=size, offset=start)


# -- pickling ----------------------------------------------------------------------------------------------------------


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles everything but the contents of tensors and arrays, which it collects."""

    def __init__(
        self, file: io.BytesIO, known: Mapping[int, int], storages: list[Tensor], collect: Any, sent: StateSent
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=collect)
        self._known, self._storages, self._sent = known, storages, sent
        self._numbers: dict[tuple[Any, int, int], int] = {}

    def reducer_override(self, obj: Any) -> Any:
        number = self._known.get(id(obj))
        if number is not None:
            return _known, (number,)
        if isinstance(obj, Tensor):
            return self._tensor(obj) if _is_plain(obj) else NotImplemented
        if isinstance(obj, nn.Module):
            return _module(obj, self._sent)
        return super().reducer_override(obj)

    def _tensor(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        key = tensor.device, storage.data_ptr(), storage.nbytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._storages)
            self._storages.append(torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage))
        where = None if tensor.device.type == "cpu" else str(tensor.device)
        view = tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        kind = type(tensor), tensor.requires_grad, vars(tensor) or None
        return _tensor, (self._numbers[key], where, view, kind)


def _is_plain(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.device.type != "meta"
    return plain and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _module(module: nn.Module, sent: StateSent) -> Any:
    """As it is pickled anyway, but without the dozen empty containers for hooks, which take most of the time."""
    found = module.__reduce_ex__(4)
    if found[0] is not _NEW or found[1] != (type(module),) or not isinstance(found[2], dict):
        return found
    kept = sent(module, dict(found[2]))
    if type(module).__setstate__ is not nn.Module.__setstate__:
        # It may put the state in the place of what a new module has, or read these containers.
        return (*found[:2], kept, *found[3:])
    for name, kind in _EMPTY.items():
        if type(kept.get(name)) is kind and not kept[name]:
            del kept[name]
    return _new_module, found[1], kept


_NEW: Any = vars(copyreg)["__newobj__"]
"""What makes an object of a class without more ado."""
_EMPTY = {
    name: type(value) for name, value in vars(nn.Module()).items() if value is not None and value == type(value)()
}
"""The containers of a new module that are empty."""


# -- unpickling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is not in the pickle that is being read."""

    known: Sequence[Any]
    storages: Sequence[Tensor]
    device: str | None


_sources: list[_Source] = []


@contextmanager
def _reading(source: _Source) -> Iterator[None]:
    _sources.append(source)
    try:
        yield
    finally:
        _sources.pop()


def _known(number: int) -> Any:
    return _sources[-1].known[number]


def _new_module(kind: type[nn.Module]) -> nn.Module:
    module = kind.__new__(kind)
    vars(module).update(vars(nn.Module()))
    return module


def _tensor(number: int, where: str | None, view: tuple[Any, ...], kind: tuple[Any, ...]) -> Tensor:
    dtype, offset, shape, stride = view
    of, requires_grad, attributes = kind
    storage = _sources[-1].storages[number].untyped_storage()
    found = torch.empty(0, dtype=dtype, device="cpu").set_(storage, offset, shape, stride)
    if where is not None:
        found = found.to(_sources[-1].device or where)
    found = nn.Parameter(found, requires_grad) if of is nn.Parameter else found.requires_grad_(requires_grad)
    vars(found).update(attributes or {})
    return found
