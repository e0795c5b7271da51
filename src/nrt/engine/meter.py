"""Count bytes, calls and floating-point operations of torch code."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """Count tensors and arithmetic of the operations inside the context.

    Attributes:
        made: bytes of all storages that were made inside.
        live: bytes of those that still exist.
        peak: maximum of `live`.
        operations: calls that made a new storage.
        flops: floating-point operations, of the calls for which torch has a formula.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = self.live = self.peak = self.operations = self.flops = 0
        self._sizes: dict[int, int] = {}  # of live storages, by id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        made = [storage for storage in _storages(out) if id(storage) not in inputs]
        self.operations += bool(made)
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=out)
        for storage in made:
            if id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self.made += storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, id(storage))
        self.peak = max(self.peak, self.live)
        return out

    def _release(self, storage_id: int) -> None:
        self.live -= self._sizes.pop(storage_id)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of the dense tensors in a tree.

    torch keeps one Python object for each storage as long as the storage exists.
    """
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            yield leaf.untyped_storage()
