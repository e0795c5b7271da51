"""Accelerators as their vendors' data sheets describe them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nrt.errors import unknown_name
from nrt.rollout.vllm_memory import MARGIN
from nrt.system.environment import machine_memory

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """Peak rates of a GPU, and the shares of them that a run is assumed to reach."""

    name: str
    memory: int  # bytes
    bfloat16_flops: float  # FLOP/s, dense
    float32_flops: float  # FLOP/s without TF32, which torch leaves off by default
    bandwidth: float  # bytes/s
    link: float = 32e9  # bytes/s, one way, to other GPUs of its node: NVLink, else PCIe
    network: float = 12.5e9  # bytes/s, one way: its share of the node's network cards
    mfu: float = 0.40  # share of the arithmetic that scoring and update reach
    bandwidth_share: float = 0.60  # share of the bandwidth that decoding reaches
    operation_seconds: float = 15e-6  # from one operation of an eager forward to the next

    @property
    def usable(self) -> int:
        """Bytes that a run may take; `MARGIN` of a GPU stays free."""
        return self.memory if self.device_type == "cpu" else int((1 - MARGIN) * self.memory)

    @property
    def device_type(self) -> str:
        """torch's name of the device type."""
        return "cpu" if self.name == "cpu" else "cuda"

    def peak_flops(self, dtype: str) -> float:
        """Return the peak FLOP/s in a dtype."""
        return self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops

    def ring_seconds(self, size: float, members: int, nodes: int) -> float:
        """Return the seconds in which a ring of GPUs gathers, or reduces, `size` bytes.

        Between nodes a ring uses one network card for each of its GPUs in a node.
        """
        rate = self.link if nodes == 1 else min(self.link, members // nodes * self.network)
        return ring_bytes(size, members) / (LINK_SHARE * rate)


def ring_bytes(size: float, members: int) -> float:
    """Return the bytes that each GPU of a ring sends to gather, or reduce, `size` bytes."""
    return size * (members - 1) / members


LINK_SHARE = 0.8
"""Share of a link's rate that collectives reach."""

GPUS: dict[str, Accelerator] = {
    gpu.name: gpu
    for gpu in (
        Accelerator("h100", int(79.1 * GIB), 989e12, 67e12, 3.35e12, 450e9, 50e9),  # SXM
        Accelerator("h200", int(139.7 * GIB), 989e12, 67e12, 4.8e12, 450e9, 50e9),  # SXM
        Accelerator("a100", int(79.1 * GIB), 312e12, 19.5e12, 2.04e12, 300e9, 25e9),  # SXM, 80 GB
        Accelerator("b200", int(178 * GIB), 2.25e15, 75e12, 7.7e12, 900e9, 50e9),  # HGX
        Accelerator("l40s", int(44.3 * GIB), 362e12, 91.6e12, 0.864e12),
        Accelerator("l4", int(22.0 * GIB), 121e12, 30.3e12, 0.3e12),
        Accelerator("a10g", int(22.0 * GIB), 70e12, 31.5e12, 0.6e12),
        Accelerator("a6000", int(47.4 * GIB), 155e12, 38.7e12, 0.768e12),
        Accelerator("t4", int(14.6 * GIB), 8.1e12, 8.1e12, 0.32e12),  # bfloat16 is emulated
        Accelerator("rtx5090", int(31.3 * GIB), 209e12, 104.8e12, 1.79e12),
        Accelerator("rtx4090", int(23.5 * GIB), 165e12, 82.6e12, 1.008e12),
        Accelerator("rtx3090", int(23.5 * GIB), 71e12, 35.6e12, 0.936e12),
    )
}
"""Known GPUs. Memory is the lowest that torch reports, which is less than the advertised size."""


def accelerator(name: str, memory: float | None = None) -> Accelerator:
    """Return the accelerator of a name, with `memory` GiB if given; `cpu` is this machine.

    Raises InputError for an unknown name.
    """
    known = {**GPUS, "cpu": _this_machine()}
    if name not in known:
        raise unknown_name("GPU", name, known)
    if memory is None:
        return known[name]
    return replace(known[name], memory=int(memory * GIB))


def _this_machine() -> Accelerator:
    """One thread of this machine.

    docs/performance.md has rate and MFU for a core with AVX-512; the bandwidth is a guess.
    """
    return Accelerator("cpu", machine_memory(), 1e11, 1e11, 2e10, mfu=0.8)
