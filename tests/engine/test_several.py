"""Two processes on gloo find what one finds: scores, gradients, updates; with all weights in each of them, or a part."""

from typing import Any

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.engine.local import build_engine
from nrt.engine.processes import processes_of
from nrt.engine.sharded import ShardedWeights, gathered, replica_bytes
from nrt.errors import InputError, RunError
from nrt.objective import METHODS, RowCredit
from nrt.scoring import PackedScorer, PaddedScorer
from nrt.types import Role, Row
from tests.tiny import PAD, random_rows, tiny_model

CPU = torch.device("cpu")
KINDS = ["ddp", "fsdp"]


def batch(prompts, traces=3):
    """(rows, their credits): groups of `traces` rows; prompts, traces and answers of different lengths."""
    rows, credits = [], []
    generator = torch.Generator().manual_seed(0)
    for g in range(prompts):
        prompt = random_rows(g, [(3 + 2 * g, 1)])[0].prompt_ids
        for k, one in enumerate(random_rows(100 + g, [(1, 4 + (g + k) % 4) for k in range(traces)])):
            tail = (*one.tail_ids, 5, 6)
            roles = (Role.START, *[Role.TRACE] * (len(tail) - 4), Role.END, Role.ANSWER, Role.ANSWER)
            rows.append(Row(prompt, tail, roles, end_sampled=k % 2 == 0))
            old = torch.randn(len(tail), generator=generator) - 4
            credits.append(RowCredit(float(torch.randn((), generator=generator)), torch.tensor([-1.0, -2.0]), old))
    return rows, credits


def gradient_of_batch(engine, prompts):
    rows, credits = batch(prompts)
    return engine.gradient(rows, lambda batch, _: [credits[i] for i in batch], METHODS["nrt-gm"], denominator=20.0 * len(rows))


def learn(
    architecture, prompts, *, parallel: Any = "ddp", dtype=torch.float32, tokens=10**6, padded=False, checkpointing=False, reference=False
):
    """Scores, gradient, norm and moved weights of one update, in as many processes as call it."""
    with processes_of(CPU) as processes:
        model = tiny_model(architecture, seed=processes.rank).to(dtype)  # what the main process loaded counts
        initial = tiny_model(architecture, seed=3).requires_grad_(False) if reference else None
        config = OptimizerConfig(lr=1e-3, eps=1.0)  # the move ∝ the gradient, so that rounding stays rounding
        engine = build_engine(
            model, config, pad_id=PAD, updates=1, tokens_per_batch=tokens, reference=initial,
            gradient_checkpointing=checkpointing, processes=processes, parallel=parallel,
        )  # fmt: skip
        assert isinstance(engine.weights, ShardedWeights) == (parallel == "fsdp" and processes.size > 1)
        assert isinstance(engine.scorer, PackedScorer)
        if padded:
            engine.scorer = PaddedScorer(PAD)
        rows, _ = batch(prompts)
        found = {"scores": engine.score(rows).logp_N, "entropy": engine.score(rows).entropy_N}
        if reference:
            found["initial"] = engine.score(rows, initial=True).logp_N
        for _ in range(2):  # the second in place of the first
            sums = gradient_of_batch(engine, prompts)
        found |= {name: gathered(master.grad).clone() for name, master in engine.weights.masters.items() if master.grad is not None}
        assert len(found) == 2 + reference + len(engine.weights.masters)
        stats = engine.update(sums)
        found["sums"] = torch.tensor([stats.total, stats.trace, stats.answer, stats.format, stats.ratio_mean, stats.grad_norm])
        assert stats.tokens == sum(len(row.ids) for row in rows)
        with engine.weights.whole():
            found["moved"] = torch.cat([p.detach().float().flatten() for p in model.parameters()])
        return found


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


def check(gang, *arguments, tolerance=1e-5, **settings):
    expected = learn(*arguments, **settings)
    first, second = gang(call, learn, arguments, settings)
    assert all(torch.equal(first[name], second[name]) for name in first), "all processes have the same bits"
    assert_same(first, expected, tolerance)


def call(function, arguments, settings):
    return function(*arguments, **settings)


@pytest.mark.parametrize("parallel", KINDS)
@pytest.mark.parametrize("prompts", [1, 3, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_gradient_is_that_of_one_process(gang, parallel, prompts, padded):
    """With one prompt the second process has nothing to do."""
    check(gang, "llama-tied-mha", prompts, parallel=parallel, padded=padded)


@pytest.mark.parametrize("parallel", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_other_architectures(gang, architecture, parallel):
    """Untied; softcaps and windows; biases and learnt positions."""
    check(gang, architecture, 3, parallel=parallel)


@pytest.mark.parametrize("parallel", KINDS)
@pytest.mark.parametrize("padded", [False, True])
def test_unequal_numbers_of_micro_batches(gang, parallel, padded):
    """In 25 tokens hardly any group is whole; layers are computed again in the backward."""
    check(gang, "llama-tied-mha", 3, parallel=parallel, padded=padded, tokens=25, checkpointing=True)


@pytest.mark.parametrize("parallel", KINDS)
def test_the_initial_model(gang, parallel):
    check(gang, "qwen3", 3, parallel=parallel, reference=True)


@pytest.mark.parametrize("parallel", KINDS)
def test_short_weights(gang, parallel):
    """bfloat16 has 8 bits: what is forwarded beside what moves the last of them."""
    check(gang, "llama-tied-mha", 4, parallel=parallel, dtype=torch.bfloat16, tolerance=0.05)


def unused(parallel):
    """A parameter that no forward reads, with its weight after an update with decay."""
    with processes_of(CPU) as processes:
        model = tiny_model()
        model.unused = torch.nn.Parameter(torch.ones(4))
        config = OptimizerConfig(lr=0.1, weight_decay=0.5)
        engine = build_engine(model, config, pad_id=PAD, updates=1, tokens_per_batch=999, processes=processes, parallel=parallel)
        engine.update(gradient_of_batch(engine, 1))
        with engine.weights.whole():
            return model.unused.tolist()


@pytest.mark.parametrize("parallel", KINDS)
def test_what_has_no_gradient_does_not_move(gang, parallel):
    assert unused(parallel) == [1.0] * 4
    assert gang(unused, parallel) == [[1.0] * 4] * 2


class SmallMemory:
    """A scorer that has memory for so many tail tokens in the second process, and for any number in the first."""

    def __init__(self, scorer, rank, most):
        self.scorer, self.most = scorer, most if rank == 1 else 10**9

    def batches(self, rows, tokens_per_batch):
        return self.scorer.batches(rows, tokens_per_batch)

    def __call__(self, model, rows):
        if sum(len(row.tail_ids) for row in rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.scorer(model, rows)


def run_short(most):
    with processes_of(CPU) as processes:
        engine = build_engine(
            tiny_model(), OptimizerConfig(), pad_id=PAD, updates=1, tokens_per_batch="auto", processes=processes, parallel="ddp"
        )
        engine.tokens_per_batch, engine.scorer = 100, SmallMemory(engine.scorer, processes.rank, most)
        engine.warn = (messages := []).append
        try:
            logp = engine.score(batch(4)[0]).logp_N
            engine.within_memory(lambda: gradient_of_batch(engine, 4))
        except InputError as error:
            return str(error)
        return engine.tokens_per_batch, messages, logp, [master.grad for master in engine.weights.masters.values()]


def test_memory_that_runs_out_in_one_halves_the_batches_of_all(gang):
    (a, b), whole = gang(run_short, 40), gang(run_short, 10**9)[0]
    assert a[:2] == b[:2] == (50, ["out of memory: tokens_per_batch is 50 from now on; the gradient stays the same"])
    torch.testing.assert_close(a[2], whole[2])
    for found, expected in zip(a[3], whole[3], strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert gang(run_short, 1) == ["out of memory: lower tokens_per_batch, which is 50, or set gradient_checkpointing=true"] * 2


def alone_in_the_midst():
    """Sharded, the others would wait for ever: whoever runs out says so and ends."""
    with processes_of(CPU) as processes:
        engine = build_engine(
            tiny_model(), OptimizerConfig(), pad_id=PAD, updates=1, tokens_per_batch="auto", processes=processes, parallel="fsdp"
        )
        engine.scorer = SmallMemory(engine.scorer, 1, 1)
        try:
            engine.within_memory(lambda: gradient_of_batch(engine, 2))
        except RunError as error:
            return str(error)


def test_memory_that_runs_out_when_sharded(gang):
    assert gang(alone_in_the_midst) == ["out of memory: lower tokens_per_batch, which is 16384, or set gradient_checkpointing=true"] * 2


def test_what_a_replica_takes():
    """float32: weight, gradient, two moments; bfloat16: a master besides, and two bytes for four."""
    model, reference = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(5, 2, bias=False)
    assert replica_bytes(model, None) == 1600
    assert replica_bytes(model.bfloat16(), reference) == 1800 + 40
