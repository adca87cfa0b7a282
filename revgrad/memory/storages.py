"""The storages of live tensors: which there are, their bytes, and when one of them goes.

PyTorch's CPU allocator keeps no counter, so what was alive before a recording can only be found by
asking Python's garbage collector for every tensor. All sizes are in bytes.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .devices import resolve


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage of `tensor`, or None where it has none of its own (sparse, wrapper subclass)."""
    try:
        return with_memory(tensor.untyped_storage())
    except (RuntimeError, NotImplementedError):  # layouts and subclasses without a storage
        return None


def with_memory(storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
    """The storage, or None if there is no memory behind it.

    To ask for the address of such a one is an error: a fake tensor's is on the meta device, and
    that of a functional or wrapped tensor has no data.
    """
    try:
        return storage if storage.device.type != "meta" and storage.data_ptr() else None
    except RuntimeError:
        return None


def live_storages(device: torch.device) -> list[torch.UntypedStorage]:
    """One storage per address, for all tensors on `device` that Python can reach.

    A tensor that only C++ holds (saved in a graph whose Python objects are gone) is not found.
    """
    found: dict[int, torch.UntypedStorage] = {}

    def add(storage: torch.UntypedStorage | None) -> None:
        if storage is None or storage.device != device:
            return
        known = found.get(storage.data_ptr())
        if known is None or known.nbytes() < storage.nbytes():
            found[storage.data_ptr()] = storage

    # Without the guard, a subclass's __torch_function__ would run on each look at its tensors.
    with torch._C.DisableTorchFunctionSubclass():
        things: list[Any] = gc.get_objects()
        for thing in things:
            # Not isinstance: a proxy may answer __class__ with whatever it likes.
            kinds = type(thing).__mro__
            if torch.Tensor in kinds:
                add(storage_of(thing))
                # The gradient may have no Python object yet; a non-leaf's would warn.
                if thing.is_leaf and thing.grad is not None:
                    add(storage_of(thing.grad))
            elif torch.UntypedStorage in kinds:
                add(with_memory(thing))
    return list(found.values())


def live_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes of all tensors on `device` that Python can reach, each storage counted once."""
    return sum(storage.nbytes() for storage in live_storages(resolve(device)))


class StorageWatch:
    """Watches storages without keeping them alive; calls `freed(address)` when one's memory goes.

    Memory goes when the storage dies, or when Python code resizes it (as FSDP does with parameters
    and memcnn with inputs): `resized` is the context in which the latter is seen.
    """

    def __init__(self, storages: list[torch.UntypedStorage], freed: Callable[[int], None]) -> None:
        self.sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self._freed = freed
        self._finalizers = {}
        for storage in storages:
            address = storage.data_ptr()
            self._finalizers[address] = weakref.finalize(storage, freed, address)
            self._finalizers[address].atexit = False

    @contextlib.contextmanager
    def resized(self) -> Iterator[None]:
        """Within this context `UntypedStorage.resize_` tells the watch about watched addresses."""
        original = torch.UntypedStorage.resize_
        watch = self

        def resize_(storage: torch.UntypedStorage, size: Any) -> Any:
            before = storage.data_ptr()
            result = original(storage, size)
            if before in watch.sizes and storage.data_ptr() != before:
                watch._freed(before)
            return result

        # The method is inherited from a C class: a name on the Python class hides it, and goes
        # without a trace.
        inherited = "resize_" not in vars(torch.UntypedStorage)
        torch.UntypedStorage.resize_ = resize_  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            if inherited:
                del torch.UntypedStorage.resize_
            else:
                torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]

    def moved(self) -> set[int]:
        """Addresses whose storage has died, or lives on with other memory than at the start."""
        gone = set()
        for address, finalizer in self._finalizers.items():
            entry = finalizer.peek()
            if entry is None or entry[0].data_ptr() != address:
                gone.add(address)
        return gone

    def close(self) -> None:
        """Stop watching."""
        for finalizer in self._finalizers.values():
            finalizer.detach()
