"""`python -m benchmarks.roofline [--quick]`: predict an update's time on an H100 without one.

The real packed scorer runs forward and backward on torch's meta device, and each operation's floating-point operations and bytes
are counted. An operation takes as long as its arithmetic or its traffic, whichever is longer. What compiled layers read and write
is what Inductor counts for one layer. Attention is counted by hand, since on the meta device it does nothing.

Not counted: launches, the optimizer's step, traffic between GPUs, and blocks of attention that are computed and masked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import Bar, Shape, finish
from benchmarks.scoring import rows_of
from nrt.engine.counting import MetaAttention, TokenCost, count_token, cut_at_embeddings
from nrt.engine.weights import Weights, layers_of, recomputing, replaced_forwards
from nrt.models.attention import install_attention
from nrt.plan import accelerator
from nrt.plan.meta_model import BUILT_IN
from nrt.plan.work import attention_flops
from nrt.scoring import PackedScorer
from nrt.scoring.packed import score_packed
from nrt.scoring.packing import lay_out, packed_batches, packed_tokens
from nrt.scoring.token_logprobs import TILE, TILE_TOKENS, TokenLogprobs
from nrt.types import Row

GPU = accelerator("h100")
MATMUL_SHARE = 0.70
"""Share of the peak arithmetic that matrix products are assumed to reach."""
BANDWIDTH_SHARE = 0.93
"""Share of the memory's bandwidth. With both, the count comes near the parts of TODAY: 466 ms of matrix products, 291 of element-wise work."""
ATTENTION_SHARE = 0.25
"""Share of it that FlexAttention reaches with a block mask."""
BANDWIDTH = BANDWIDTH_SHARE * GPU.bandwidth
TODAY = {"llama-3.2-3b": 1.074, "llama-3.1-8b": 2.037}
"""Seconds that the first such count predicted: recomputed, not compiled, with tiles of 261 tokens and all columns."""
SHAPE = Shape(prompts=2, traces=8, prompt=300, trace=500, answer=416)
"""15,272 packed tokens."""
FITS = {"llama-3.2-3b": 4096, "llama-3.1-8b": 8192}
"""Maximum tokens of a micro-batch that fits without recomputation, the 8B model on eight GPUs (`nrt plan`)."""
BARS = {"llama-3.2-3b": 0.65, "llama-3.1-8b": 0.70}
"""Maximum share of TODAY."""
MIN_UTILISATION = 0.48
COMPILED_TOKENS = 64
"""Tokens of the layer that Inductor lowers; its traffic is proportional to them."""


class Operations(TorchDispatchMode):
    """Add up the seconds of the operations inside the context, by group.

    Views and allocations take none. `group` marks those that are no matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.group = "element-wise"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        if func.is_view or func._overloadpacket.__name__ in ("empty", "new_empty", "empty_like"):
            return out
        group = "matmul" if flops and self.group == "element-wise" else self.group
        traffic = sum(map(_bytes, _tensors((args, kwargs)))) + sum(map(_bytes, _tensors(out)))
        arithmetic = flops / (MATMUL_SHARE * GPU.peak_flops("bfloat16"))
        seconds = max(arithmetic, traffic / BANDWIDTH)
        self.seconds[group] = self.seconds.get(group, 0.0) + seconds
        return out

    @contextmanager
    def within(self, group: str) -> Iterator[None]:
        """Context of operations of another group."""
        previous, self.group = self.group, group
        try:
            yield
        finally:
            self.group = previous

    def marking(self, group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose operations are of this group."""

        def marked(*args: Any) -> Any:
            with self.within(group):
                return function(*args)

        return marked


@dataclass(frozen=True)
class Seconds:
    """Predicted seconds of one micro-batch's forward and backward."""

    matmul: float
    elementwise: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        return self.matmul + self.elementwise + self.head + self.attention


def predict(
    name: str, rows: list[Row], *, recompute: bool, fused: tuple[float, float] | None
) -> Seconds:
    """Predict an update of one micro-batch.

    Args:
        fused: bytes of element-wise traffic that a token costs in a compiled layer, (forward, backward); None: not compiled.
    """
    one, two = (count(name, rows, layers, recompute=recompute) for layers in (1, 2))
    layers = _config(name).num_hidden_layers

    def whole(group: str) -> float:
        return one.get(group, 0.0) + (layers - 1) * (two.get(group, 0.0) - one.get(group, 0.0))

    elementwise = whole("element-wise")
    if fused is not None:
        layer = two["element-wise"] - one["element-wise"]
        traffic = packed_tokens(rows) * (fused[0] * (1 + recompute) + fused[1])
        elementwise += layers * (traffic / BANDWIDTH - layer)
    forward = _attention_flops(name, rows)
    attention = (3.5 + recompute) * forward / (ATTENTION_SHARE * GPU.peak_flops("bfloat16"))
    return Seconds(whole("matmul"), elementwise + whole("gradients"), whole("head"), attention)


def count(name: str, rows: list[Row], layers: int, *, recompute: bool) -> dict[str, float]:
    """Return the seconds of a model with some layers, by group; "gradients" are their additions to float32 sums."""
    model = _model(name, layers, "meta")
    operations = Operations()

    class MarkedWeights(Weights):
        def _move_gradient(self, parameter: Tensor) -> None:
            with operations.within("gradients"):
                super()._move_gradient(parameter)

    weights = MarkedWeights(model)
    for parameter in model.parameters():
        weights.gradient_of(parameter)
    TILE["meta"], TILE_TOKENS["meta"] = TILE["cuda"], TILE_TOKENS["cuda"]
    again = recomputing(layers_of(model) if recompute else ())
    with ExitStack() as stack:
        for name_of_pass in ("forward", "backward"):
            marked = operations.marking("head", getattr(TokenLogprobs, name_of_pass))
            stack.enter_context(patch.object(TokenLogprobs, name_of_pass, staticmethod(marked)))
        with operations, cut_at_embeddings(model), again:
            scores = score_packed(model, MetaAttention.for_rows(rows), weights.gradient_of)
            scores.logp_N.sum().backward()
    return operations.seconds


def fused_bytes(name: str) -> tuple[float, float]:
    """Return the bytes that Inductor's fused kernels of one layer read and write for a token: (forward, backward)."""
    model = _model(name, 1, "cpu")
    row = Row((0,), (0,) * COMPILED_TOKENS, (), end_sampled=False)
    traffic = {"forward": 0, "backward": 0}

    def lower(direction: str) -> Callable[..., Any]:
        def compiler(graph: Any, inputs: Any) -> Any:
            lowering = GraphLowering(graph)
            mode: Any = detect_fake_mode(inputs)
            with V.set_fake_mode(mode), V.set_graph_handler(lowering), DebugContext(), mode:
                lowering.run(*inputs)
                lowering._update_scheduler()
                for node in lowering.scheduler.nodes:
                    if not isinstance(node, ExternKernelSchedulerNode):
                        traffic[direction] += node.get_read_write_buffers_sizes()
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(
        fw_compiler=lower("forward"),
        bw_compiler=lower("backward"),
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )
    torch._dynamo.reset()
    layers = layers_of(model)
    compiled = torch.compile(type(layers[0]).forward, backend=backend, dynamic=False)
    with replaced_forwards(layers, lambda layer: partial(compiled, layer)):
        PackedScorer()(model, [row]).logp_N.sum().backward()
    torch._dynamo.reset()
    tokens = packed_tokens([row])
    return traffic["forward"] / tokens, traffic["backward"] / tokens


def utilisation(name: str, batches: Sequence[Sequence[Row]], seconds: float) -> float:
    """Return the share of the peak that forward and backward without recomputation reach."""
    token = _token_cost(name)
    forward = 0.0
    for rows in batches:
        forward += _config(name).num_hidden_layers * token.flops * packed_tokens(rows)
        forward += token.head_flops * sum(len(row.tail_ids) for row in rows)
        forward += _attention_flops(name, rows)
    return 3 * forward / seconds / GPU.peak_flops("bfloat16")


def measure(name: str, rows: list[Row]) -> dict[str, Any]:
    """Return seconds and utilisation with and without compiled layers and recomputation, and last in micro-batches that fit."""
    fused = fused_bytes(name)

    def case(batches: Sequence[list[Row]], *, recompute: bool, is_compiled: bool) -> dict[str, Any]:
        parts = [
            predict(name, batch, recompute=recompute, fused=fused if is_compiled else None)
            for batch in batches
        ]
        seconds = {group: sum(vars(part)[group] for part in parts) for group in vars(parts[0])}
        total = sum(seconds.values())
        return seconds | {"total": total, "utilisation": utilisation(name, batches, total)}

    figures: dict[str, Any] = {"tokens": packed_tokens(rows)}
    figures["bytes a token of a compiled layer"] = {"forward": fused[0], "backward": fused[1]}
    for is_compiled in (False, True):
        for recompute in (True, False):
            words = (
                f"{'' if is_compiled else 'not '}compiled, {'' if recompute else 'not '}recomputed"
            )
            figures[words] = case([rows], recompute=recompute, is_compiled=is_compiled)
    fitting = [[rows[i] for i in batch] for batch in packed_batches(rows, FITS[name])]
    words = f"compiled, not recomputed, at most {FITS[name]:,} tokens"
    figures[words] = case(fitting, recompute=False, is_compiled=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="only the 3B model; nothing is written"
    )
    arguments = parser.parse_args()
    names = list(BARS)[:1] if arguments.quick else list(BARS)
    figures, bars = {}, []
    for name in names:
        figures[name] = measure(name, rows_of(SHAPE))
        print(table(name, figures[name]))
        best = figures[name]["compiled, not recomputed"]
        bars.append(
            Bar(f"{name}: update over the first count's", best["total"] / TODAY[name], BARS[name])
        )
        bars.append(
            Bar(f"{name}: utilisation", best["utilisation"], MIN_UTILISATION, at_least=True)
        )
    finish("roofline", figures, bars, quick=arguments.quick)


def table(name: str, figures: dict[str, Any]) -> str:
    """Return the cases as a table in Markdown, in milliseconds."""
    groups = ("matmul", "elementwise", "head", "attention", "total")
    lines = [f"| {name}, {figures['tokens']:,} tokens | {' | '.join(groups)} | utilisation |"]
    lines.append("|---" * (len(groups) + 2) + "|")
    for case, values in figures.items():
        if isinstance(values, dict) and "total" in values:
            times = " | ".join(f"{1000 * values[group]:.0f}" for group in groups)
            lines.append(f"| {case} | {times} | {values['utilisation']:.1%} |")
    return "\n".join(lines)


def _attention_flops(name: str, rows: Sequence[Row]) -> float:
    """Return the operations of all layers' attention, forward."""
    spans = []
    for group in lay_out(rows).groups:
        prompt = group.prompt[1] - group.prompt[0]
        spans += [(0, prompt), *((prompt, prompt + stop - start) for start, stop in group.tails)]
    return _config(name).num_hidden_layers * attention_flops(_token_cost(name), spans)


def _config(name: str) -> Any:
    values = dict(BUILT_IN[name])
    values["vocab_size"] += 2  # START and END
    return AutoConfig.for_model(values.pop("model_type"), **values)


@lru_cache
def _token_cost(name: str) -> TokenCost:
    return count_token(_model(name, 1, "meta"))


def _model(name: str, layers: int, device: str) -> Any:
    """Return a model with some layers and nrt's attention; on a CPU of random weights, with a small vocabulary."""
    config = _config(name)
    config.num_hidden_layers = layers
    if device == "cpu":
        config.vocab_size = 2048
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    install_attention(model)
    return model


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's numbers, those of an expanded dimension once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


if __name__ == "__main__":
    main()
