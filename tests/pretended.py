# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false
"""A GPU that is not there: its tensors say `cuda:0`, their numbers are computed on the CPU, and what mixes them with the CPU's raises, as
it does on a GPU. It finds a tensor that is made on the wrong device; of kernels, memory and speed it knows nothing.

An operation reaches `_run` whichever way it was called: by a dispatch mode where it makes tensors, by the tensors' class elsewhere. For
torch's C++ they are `meta` tensors, the one device without storage that every build has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import _device
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nrt.rollout import float32_head
from nrt.scoring import prefix_attention as attention

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
BETWEEN_DEVICES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""A GPU's tensor takes places from the CPU."""


class OnGPU(torch.Tensor):
    """`numbers` on the pretended GPU."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> OnGPU:
        place = {
            "strides": numbers.stride(),
            "storage_offset": numbers.storage_offset(),
            "dtype": numbers.dtype,
        }
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, device=torch.device("meta"), **place
        )
        made.numbers = numbers
        return made

    def __init__(self, numbers: torch.Tensor) -> None: ...

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: OnGPU) -> None:
        torch.Tensor.data.__set__(self, value)
        self.numbers = value.numbers

    def __tensor_flatten__(self) -> Any:  # so that modules swap their parameters and keep them tied
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> OnGPU:
        return OnGPU(inner["numbers"])

    def __getitem__(self, places: Any) -> Any:
        return super().__getitem__(_places(places))

    def __setitem__(self, places: Any, value: Any) -> None:
        super().__setitem__(_places(places), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = copied = OnGPU(self.numbers.detach().clone()).requires_grad_(
                self.requires_grad
            )
            copied._is_param = isinstance(self, torch.nn.Parameter)
        return memo[id(self)]

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.numbers!r})"


class Pretending(TorchDispatchMode):
    """Hears of operations that have no tensor yet, such as `torch.zeros`. In one thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """`device="cuda:0"` works; models attend by plain torch, since FlexAttention's kernel is compiled for a real one."""
    with pytest.MonkeyPatch.context() as patch, Pretending():
        for name, value in _CUDA.items():
            patch.setattr(torch.cuda, name, value)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _from_numbers(getattr(torch, name)))
        patch.setattr(attention, "FLEX_DEVICES", ())
        # CUDA's product of short numbers with float32 results
        patch.setattr(float32_head, "_matmul", lambda a, b: a.float() @ b.float())
        yield


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """On the CPU; results are on the GPU where they are asked for there, or come from there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, OnGPU)]
    _check(func, args, here, [x for x in tensors if not isinstance(x, OnGPU)])
    device = kwargs.get("device")
    ours = bool(here) if device is None else _is_ours(device)
    if func is aten.copy_.default:
        _numbers(args[0]).copy_(_numbers(args[1]))
        return args[0]
    if device is not None and (ours or here):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnGPU, _numbers, (args, kwargs))
    result = func(*args, **kwargs)
    if not ours or func is aten._local_scalar_dense.default:
        return result
    return tree_map_only(
        torch.Tensor, lambda made: next((x for x in here if x.numbers is made), OnGPU(made)), result
    )


def _check(func: Any, args: Any, here: list[Any], elsewhere: list[torch.Tensor]) -> None:
    """Scalars may be anywhere."""
    if not here or func in BETWEEN_DEVICES:
        return
    wrong = [x for x in elsewhere if x.dim()]
    if func in INDEXED and isinstance(args[0], OnGPU):
        wrong = [x for x in wrong if any(x is value for value in args[2:])]
    if wrong:
        raise RuntimeError(f"{func}: tensors on two devices, cuda:0 and {wrong[0].device}")


def _is_ours(device: Any) -> bool:
    """In C++ the device of our tensors is `meta`; a model that is about to be loaded is on the true one."""
    kind, around = torch.device(device).type, _device.CURRENT_DEVICE
    return kind == "cuda" or (kind == "meta" and not (around and around.type == "meta"))


def _numbers(x: Any) -> Any:
    return x.numbers if isinstance(x, OnGPU) else x


def _places(places: Any) -> Any:
    """Lists would become meta tensors in C++, without their numbers."""
    if isinstance(places, tuple):
        return tuple(map(_places, places))
    return torch.tensor(places, device=GPU) if isinstance(places, list) else places


def _from_numbers(make: Any) -> Any:
    def made(data: Any, *, device: Any = None, **options: Any) -> Any:
        there = device is not None and torch.device(device).type == "cuda"
        return make(data, **options).to(GPU) if there else make(data, device=device, **options)

    return made


_CUDA: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "set_device": lambda *_: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_name": lambda *_: "pretended",
    "get_device_properties": lambda *_: SimpleNamespace(
        total_memory=80 * 2**30, name="pretended", major=9, minor=0
    ),
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "get_rng_state": lambda *_: torch.zeros(8, dtype=torch.uint8),
    "set_rng_state": lambda *_: None,
}
