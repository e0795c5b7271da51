"""Two processes on gloo compute the scores, gradients and updates of one process.

Each process holds all weights ("ddp") or a shard ("fsdp").
"""

from functools import partial
from typing import Any

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.distributed import process_group
from nrt.engine.build import build_engine
from nrt.engine.fsdp import ShardedWeights, full_tensor, replica_bytes
from nrt.errors import InputError, RunError
from nrt.objective import METHODS, RowCredit
from nrt.scoring import PackedScorer, PaddedScorer
from nrt.types import Role, Row
from tests.tiny import PAD, random_rows, tiny_model

CPU = torch.device("cpu")
KINDS = ["ddp", "fsdp"]


def batch(prompts, traces=3):
    """Return rows and their credits: groups of `traces` rows, of different lengths."""
    rows, credits = [], []
    generator = torch.Generator().manual_seed(0)
    for g in range(prompts):
        prompt = random_rows(g, [(3 + 2 * g, 1)])[0].prompt_ids
        lengths = [(1, 4 + (g + k) % 4) for k in range(traces)]
        for k, row in enumerate(random_rows(100 + g, lengths)):
            tail = (*row.tail_ids, 5, 6)
            roles = (
                Role.START,
                *[Role.TRACE] * (len(tail) - 4),
                Role.END,
                Role.ANSWER,
                Role.ANSWER,
            )
            rows.append(Row(prompt, tail, roles, end_sampled=k % 2 == 0))
            old_logp_N = torch.randn(len(tail), generator=generator) - 4
            advantage = float(torch.randn((), generator=generator))
            credits.append(RowCredit(advantage, torch.tensor([-1.0, -2.0]), old_logp_N))
    return rows, credits


def gradient_of_batch(engine, prompts):
    rows, credits = batch(prompts)
    return engine.compute_gradient(rows, credits, METHODS["nrt-gm"], denominator=20.0 * len(rows))


def learn(
    architecture,
    prompts,
    *,
    parallel: Any = "ddp",
    dtype=torch.float32,
    tokens=10**6,
    padded=False,
    checkpointing=False,
    reference=False,
    compiled=False,
):
    """Return scores, gradient, statistics and new weights of one update."""
    with process_group(CPU) as processes:
        # the engine replaces the weights of all processes by those of rank 0
        model = tiny_model(architecture, seed=processes.rank).to(dtype)
        initial = tiny_model(architecture, seed=3).requires_grad_(False) if reference else None
        # with this eps the step is proportional to the gradient, so rounding is not amplified
        config = OptimizerConfig(lr=1e-3, eps=1.0)
        engine = build_engine(
            model,
            config,
            pad_id=PAD,
            updates=1,
            tokens_per_batch=tokens,
            reference=initial,
            gradient_checkpointing=checkpointing,
            processes=processes,
            parallel=parallel,
            compile_layers=compiled,
        )
        assert engine.compiled.is_on == compiled
        assert isinstance(engine.weights, ShardedWeights) == (
            parallel == "fsdp" and processes.size > 1
        )
        assert isinstance(engine.scorer, PackedScorer)
        if padded:
            engine.scorer = PaddedScorer(PAD)
        rows, _ = batch(prompts)
        results = {"scores": engine.score(rows).logp_N, "entropy": engine.score(rows).entropy_N}
        if reference:
            results["initial"] = engine.score(rows, initial=True).logp_N
        for _ in range(2):  # the second gradient replaces the first
            sums = gradient_of_batch(engine, prompts)
        for name, master in engine.weights.masters.items():
            if master.grad is not None:
                results[name] = full_tensor(master.grad).clone()
        assert len(results) == 2 + reference + len(engine.weights.masters)
        stats = engine.optimizer_step(sums)
        names = ("total", "trace", "answer", "format", "ratio_mean", "grad_norm")
        results["stats"] = torch.tensor([getattr(stats, name) for name in names])
        assert stats.tokens == sum(len(row.ids) for row in rows)
        with engine.weights.gathered_parameters():
            parameters = [p.detach().float().flatten() for p in model.parameters()]
            results["updated"] = torch.cat(parameters)
        return results


def assert_same(results, expected, tolerance=1e-5):
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0
        assert (results[name] - value).abs().max() <= tolerance * value.abs().max(), name


def check(gang, *arguments, tolerance=1e-5, **settings):
    expected = learn(*arguments, **settings)
    first, second = gang(call, learn, arguments, settings)
    for name in first:
        assert torch.equal(first[name], second[name]), name  # bit for bit
    assert_same(first, expected, tolerance)


def learn_compiled(*arguments, **settings):
    """`learn` with compiled layers, but without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        return learn(*arguments, compiled=True, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own code while it traces
@pytest.mark.parametrize("parallel", KINDS)
def test_compiled_and_recomputed_layers(gang, parallel):
    settings = {"parallel": parallel, "tokens": 20, "checkpointing": True}
    expected = learn("llama", 3, **settings)
    first, _ = gang(call, learn_compiled, ("llama", 3), settings)
    assert_same(first, expected)


def call(function, arguments, settings):
    return function(*arguments, **settings)


@pytest.mark.parametrize("parallel", KINDS)
@pytest.mark.parametrize("prompts", [1, 3, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_gradient_is_that_of_one_process(gang, parallel, prompts, padded):
    """With one prompt the second process has no rows."""
    check(gang, "llama-tied-mha", prompts, parallel=parallel, padded=padded)


@pytest.mark.parametrize("parallel", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_other_architectures(gang, architecture, parallel):
    """Untied embeddings; softcaps and windows; biases and learned positions."""
    check(gang, architecture, 3, parallel=parallel)


@pytest.mark.parametrize("parallel", KINDS)
@pytest.mark.parametrize("padded", [False, True])
def test_unequal_numbers_of_micro_batches(gang, parallel, padded):
    """25 tokens hold hardly any whole group. With gradient checkpointing."""
    check(
        gang, "llama-tied-mha", 3, parallel=parallel, padded=padded, tokens=25, checkpointing=True
    )


@pytest.mark.parametrize("parallel", KINDS)
def test_the_initial_model(gang, parallel):
    check(gang, "qwen3", 3, parallel=parallel, reference=True)


@pytest.mark.parametrize("parallel", KINDS)
def test_bfloat16_weights(gang, parallel):
    """bfloat16 has 8 bits; the other rows of a micro-batch change the last of them."""
    check(gang, "llama-tied-mha", 4, parallel=parallel, dtype=torch.bfloat16, tolerance=0.05)


def update_with_unused_parameter(parallel):
    """Return a parameter that no forward reads, after an update with weight decay."""
    with process_group(CPU) as processes:
        model = tiny_model()
        model.unused = torch.nn.Parameter(torch.ones(4))
        config = OptimizerConfig(lr=0.1, weight_decay=0.5)
        engine = build_engine(
            model,
            config,
            pad_id=PAD,
            updates=1,
            tokens_per_batch=999,
            processes=processes,
            parallel=parallel,
        )
        engine.optimizer_step(gradient_of_batch(engine, 1))
        with engine.weights.gathered_parameters():
            return model.unused.tolist()


@pytest.mark.parametrize("parallel", KINDS)
def test_a_parameter_without_gradient_stays(gang, parallel):
    assert update_with_unused_parameter(parallel) == [1.0] * 4
    assert gang(update_with_unused_parameter, parallel) == [[1.0] * 4] * 2


class SmallMemory:
    """Scorer that runs out of memory above a number of tail tokens, in the second process only."""

    shares_prompts = True

    def __init__(self, scorer, rank, max_tokens):
        self.scorer = scorer
        self.max_tokens = max_tokens if rank == 1 else 10**9

    def batches(self, rows, tokens_per_batch):
        return self.scorer.batches(rows, tokens_per_batch)

    def __call__(self, model, rows):
        if sum(len(row.tail_ids) for row in rows) > self.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.scorer(model, rows)


def build_auto_engine(processes, parallel):
    return build_engine(
        tiny_model(),
        OptimizerConfig(),
        pad_id=PAD,
        updates=1,
        tokens_per_batch="auto",
        processes=processes,
        parallel=parallel,
    )


def score_and_train_in_small_memory(max_tokens):
    """Return micro-batch size, warnings, scores and gradients, or the error."""
    with process_group(CPU) as processes:
        engine = build_auto_engine(processes, "ddp")
        engine.budget.tokens = 100
        engine.scorer = SmallMemory(engine.scorer, processes.rank, max_tokens)
        messages = []
        engine.warn = messages.append
        try:
            logp = engine.score(batch(4)[0]).logp_N
            engine.retry_out_of_memory(lambda: gradient_of_batch(engine, 4))
        except InputError as error:
            return str(error)
        gradients = [master.grad for master in engine.weights.masters.values()]
        return engine.budget.tokens, messages, logp, gradients


def test_out_of_memory_in_one_process_halves_the_batches_of_all(gang):
    first, second = gang(score_and_train_in_small_memory, 40)
    expected = gang(score_and_train_in_small_memory, 10**9)[0]
    warning = "out of memory: tokens_per_batch is 50 from now on; the gradient stays the same"
    assert first[:2] == second[:2] == (50, [warning])
    torch.testing.assert_close(first[2], expected[2])
    for gradient, expected_gradient in zip(first[3], expected[3], strict=True):
        difference = (gradient - expected_gradient).abs().max()
        assert difference <= 1e-5 * expected_gradient.abs().max()
    fix = "lower tokens_per_batch, which is 50, or set gradient_checkpointing=true"
    assert gang(score_and_train_in_small_memory, 1) == [f"out of memory: {fix}"] * 2


def train_sharded_in_small_memory():
    """Return the error. With sharded weights a process cannot retry: the others wait for it."""
    with process_group(CPU) as processes:
        engine = build_auto_engine(processes, "fsdp")
        engine.scorer = SmallMemory(engine.scorer, 1, 1)
        try:
            engine.retry_out_of_memory(lambda: gradient_of_batch(engine, 2))
        except RunError as error:
            return str(error)


def test_out_of_memory_with_sharded_weights(gang):
    fix = "lower tokens_per_batch, which is 16384, or set gradient_checkpointing=true"
    assert gang(train_sharded_in_small_memory) == [f"out of memory: {fix}"] * 2


def test_bytes_of_a_replica():
    """float32: weight, gradient, two moments. bfloat16: a weight of two bytes, and a master too."""
    model, reference = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(5, 2, bias=False)
    assert replica_bytes(model, None) == 1600
    assert replica_bytes(model.bfloat16(), reference) == 1800 + 40
