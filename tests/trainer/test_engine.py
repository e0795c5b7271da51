"""The engine: short weights with float32 masters, recomputed activations, and what happens when memory runs out."""

import json
import shutil
from functools import partial

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.distributed import SINGLE_PROCESS
from nrt.engine import compiled
from nrt.engine.build import build_engine
from nrt.engine.memory import TokenBudget, free_gpu_memory
from nrt.engine.weights import Weights, recomputing
from nrt.errors import InputError
from nrt.run import Run
from nrt.scoring import PackedScorer
from nrt.trainer import train
from nrt.trainer.checkpoint import load_checkpoint, save_checkpoint, saved_choices
from nrt.trainer.setup import prepare
from nrt.trainer.step import update
from tests.steps import collect, local_engine, record_gradient, step
from tests.tiny import PAD, random_rows, tiny_model
from tests.trainer.test_train import InterruptAt


def follow(model, targets, lr, steps):
    """Moves the embedding table towards the targets through `Weights`."""
    weights = Weights(model)
    optimizer = torch.optim.AdamW(weights.masters.values(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        (model.weight.float() - targets).square().sum().backward()
        optimizer.step()
        weights.copy_to_model()
    return model.weight.detach().float()


def test_small_updates_add_up_in_bfloat16():
    """200 updates of 1e-5 move weights of 1 by 2e-3, half a step of bfloat16 there (1/128); alone, each is rounded away."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = torch.rand(8, 4) + 1
    targets = start + 1
    exact = torch.nn.Embedding(8, 4, _weight=start.clone())
    short = torch.nn.Embedding(8, 4, _weight=start.bfloat16())
    moved, expected = follow(short, targets, 1e-4, 200), follow(exact, targets, 1e-4, 200)
    assert (expected - start).min() > 0.015
    assert (
        moved - expected
    ).abs().max() <= 1 / 128 + 1 / 256  # the rounding of the start and of the result
    assert moved.dtype == torch.float32
    assert short.weight.dtype == torch.bfloat16
    alone = torch.nn.Embedding(8, 4, _weight=start.bfloat16())
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        (alone.weight.float() - targets).square().sum().backward()
        optimizer.step()
    assert torch.equal(alone.weight, start.bfloat16())


def test_gradients_of_many_parts_are_summed_in_float32():
    """1 + 1000 × 2⁻¹⁰: in bfloat16 the sum would stay 1."""
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    weights = Weights(model)
    for coefficient in [1.0, *[2.0**-10] * 1000]:
        (model.weight * coefficient).sum().backward()
    assert model.weight.grad is None
    (master,) = weights.masters.values()
    assert master.grad is not None
    assert master.grad.item() == 1 + 1000 * 2**-10


def test_float32_parameters_are_their_own_masters():
    model = tiny_model("llama-tied-mha")
    model.model.norm.weight.requires_grad_(False)
    weights = Weights(model)
    assert not weights.unsaved_masters
    assert "model.norm.weight" not in weights.masters
    assert "lm_head.weight" not in weights.masters  # tied: under the name of the embedding
    assert weights.masters["model.embed_tokens.weight"] is model.model.embed_tokens.weight
    assert weights.gradient_of(model.lm_head.weight) is model.model.embed_tokens.weight.grad


def test_a_run_in_bfloat16_resumes_exactly(make_config, tmp_path):
    settings = {"dtype": "bfloat16", "steps": 4, "save_every": 1}
    whole = train(make_config(run=str(tmp_path / "whole"), **settings))
    with pytest.raises(BaseException, match="stopped at step 1 of 4"):
        train(make_config(run=str(tmp_path / "cut"), **settings), listener=InterruptAt(2))
    cut = train(make_config(resume=str(tmp_path / "cut"), **settings))
    names = ("loss/total", "optim/grad_norm", "reward/mean")
    assert [[m.get(n) for n in names] for m in whole.metrics()] == [
        [m.get(n) for n in names] for m in cut.metrics()
    ]
    ends = [
        (run.path / "checkpoints" / "step-000004" / "optimizer.safetensors").read_bytes()
        for run in (whole, cut)
    ]
    assert ends[0] == ends[1]
    config = json.loads((whole.path / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def saved_bytes(engine, scorer, rows):
    """Bytes that the backward keeps, each tensor once."""
    model = engine.model
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        recomputing(engine.recomputed),
    ):
        loss = scorer(model, rows).logp_N.sum()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return loss, sum(size for place, size in kept.items() if place not in parameters)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "opt"])
def test_recomputed_activations_give_the_same_gradient(architecture):
    """Also where the model's config asks for dropout, which stays off."""
    rows = random_rows(0, [(30, 40), (30, 20), (5, 60)])
    gradients, sizes = [], []
    for checkpointing in (False, True):
        model = (
            tiny_model(architecture, attention_dropout=0.5)
            if architecture == "llama"
            else tiny_model(architecture)
        )
        engine = build_engine(
            model,
            OptimizerConfig(),
            pad_id=PAD,
            updates=1,
            tokens_per_batch=1000,
            gradient_checkpointing=checkpointing,
        )
        assert isinstance(engine.scorer, PackedScorer)
        loss, size = saved_bytes(engine, PackedScorer(), rows)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        sizes.append(size)
        assert not any(module.training for module in model.modules())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert sizes[1] < 0.5 * sizes[0]


def test_gradient_checkpointing_in_a_run(make_config, tmp_path):
    runs = [
        train(make_config(run=str(tmp_path / str(on)), gradient_checkpointing=on))
        for on in (False, True)
    ]
    losses = [[m["loss/total"] for m in run.metrics() if "loss/total" in m] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_without_such_layers_cannot_recompute():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="set gradient_checkpointing=false"):
        build_engine(
            model,
            OptimizerConfig(),
            pad_id=PAD,
            updates=1,
            tokens_per_batch=1,
            gradient_checkpointing=True,
        )


class SmallMemory:
    """A scorer that has memory for so many tokens, and no more."""

    shares_prompts = True

    def __init__(self, scorer, most):
        self.scorer, self.most = scorer, most

    def batches(self, rows, tokens_per_batch):
        return self.scorer.batches(rows, tokens_per_batch)

    def __call__(self, model, rows):
        scores = self.scorer(model, rows)
        if sum(len(row.tail_ids) for row in rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return scores


@pytest.mark.parametrize("one_pass", [True, False])
def test_out_of_memory_halves_the_batch_and_keeps_the_gradient(make_config, one_pass):
    found = []
    for memory in (10**9, 60):
        parts = prepare(make_config(traces=8, updates_per_rollout=1 if one_pass else 2))
        engine = local_engine(parts)
        engine.budget.tokens = 100 if memory == 60 else 10**6
        engine.max_grad_norm = 1e9
        engine.scorer = SmallMemory(engine.scorer, memory)
        messages = []
        engine.warn = messages.append
        gradients = record_gradient(engine)
        if one_pass:
            step(parts.learner, parts.draw, 4, seed=1)
        else:
            update(parts.learner, collect(parts.learner, parts.draw, 4, seed=1).groups)
        assert len(messages) == (memory == 60)
        found.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    assert messages == [
        "out of memory: tokens_per_batch is 50 from now on; the gradient stays the same"
    ]
    assert engine.budget.tokens == 50
    assert found[0].abs().max() > 0
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


def test_out_of_memory_twice_or_with_a_number_set_is_an_error(make_config):
    parts = prepare(make_config())
    engine = local_engine(parts)
    engine.scorer, engine.warn = SmallMemory(engine.scorer, 1), lambda text: None
    with pytest.raises(InputError, match=r"lower tokens_per_batch, which is 8192"):
        collect(parts.learner, parts.draw, 4, seed=1)
    parts = prepare(make_config(tokens_per_batch=500))
    engine = local_engine(parts)
    engine.scorer = SmallMemory(engine.scorer, 1)
    with pytest.raises(
        InputError,
        match=r"lower tokens_per_batch, which is 500, or set gradient_checkpointing=true",
    ):
        collect(parts.learner, parts.draw, 4, seed=1)


def test_a_gradient_that_was_half_moved_is_forgotten():
    """Memory that runs out between a short gradient and its master leaves it with the parameter."""
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    weights = Weights(model)
    model.weight.grad = torch.ones_like(model.weight)
    weights.gradient_of(model.weight).fill_(1)
    weights.zero_grad()
    model.weight.sum().backward()
    assert weights.gradient_of(model.weight).item() == 1


def test_a_run_that_halved_its_batches_goes_on_with_them(make_config, tmp_path):
    parts = prepare(make_config())
    engine = local_engine(parts)
    engine.budget.halve()
    save_checkpoint(tmp_path / "checkpoint", engine, {}, lambda folder: folder.mkdir())
    again = local_engine(prepare(make_config()))
    load_checkpoint(tmp_path / "checkpoint", again)
    assert (again.budget.tokens, again.budget.halved) == (8192, True)
    fixed = local_engine(prepare(make_config(tokens_per_batch=500)))
    load_checkpoint(tmp_path / "checkpoint", fixed)
    assert fixed.budget.tokens == 500


def test_other_errors_are_passed_on(make_config):
    engine = local_engine(prepare(make_config()))

    def fail():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        engine.retry_out_of_memory(fail)


def test_a_real_allocation_that_fails(make_config):
    """2⁵⁰ bytes are not to be had."""
    engine = local_engine(prepare(make_config()))
    tries, messages = [], []
    engine.warn = messages.append

    def work():
        tries.append(engine.budget.tokens)
        return torch.empty(2**50 if len(tries) == 1 else 1, dtype=torch.uint8)

    assert engine.retry_out_of_memory(work).numel() == 1
    assert tries == [16384, 8192]
    assert len(messages) == 1


def test_the_run_warns_of_it(make_config, tmp_path, monkeypatch):
    """In warnings.jsonl, with the step."""
    from nrt.trainer import setup

    build = setup.build_engine

    def with_small_memory(*args, **kwargs):
        engine = build(*args, **kwargs)
        engine.budget.tokens, engine.scorer = 100, SmallMemory(engine.scorer, 60)
        return engine

    monkeypatch.setattr(setup, "build_engine", with_small_memory)
    run = train(make_config(run=str(tmp_path / "small"), traces=8, **{"heldout.rows": 2}))
    assert [w["kind"] for w in Run(run.path).warnings()].count("out-of-memory") == 1
    shutil.rmtree(run.path)


def test_a_run_whose_layers_cannot_be_compiled_goes_on_with_a_warning(make_config, monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(compiled, "AUTO_DEVICES", ("cpu",))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    run = train(make_config(steps=1, save_every=1))
    compiled._compiled.cache_clear()
    (warning,) = [w for w in run.warnings() if w["kind"] == "not-compiled"]
    assert "cannot be compiled here: Failed to find C compiler." in warning["message"]
    assert run.metrics()[-1]["step"] == 1


def test_a_resumed_run_compiles_what_it_compiled_before(make_config, monkeypatch):
    """Even if a comparison under the trained weights would decide otherwise."""
    monkeypatch.setattr(compiled, "AUTO_DEVICES", ("cpu",))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled._compiled.cache_clear()
    run = train(make_config(steps=1, save_every=1))
    monkeypatch.setattr(compiled, "relative_difference", lambda a, b: float("nan"))
    assert not local_engine(prepare(make_config())).compiled.is_on
    checkpoint = run.path / "checkpoints" / "step-000001"
    assert local_engine(prepare(make_config(), checkpoint=checkpoint)).compiled.is_on
    compiled._compiled.cache_clear()


def test_when_memory_runs_out_layers_are_recomputed_before_batches_are_halved():
    budget = TokenBudget(
        100, may_halve=True, may_recompute=True, processes=SINGLE_PROCESS, lockstep=False
    )
    tried, warnings = [], []

    def work():
        tried.append((budget.recomputes_all, budget.tokens))
        if len(tried) < 3:
            raise torch.OutOfMemoryError("out of memory")
        return "done"

    assert budget.retry(work, reset=lambda: None, warn=warnings.append) == "done"
    assert tried == [(False, 100), (True, 100), (True, 50)]
    assert [text.split(":")[1].split(" from")[0] for text in warnings] == [
        " all micro-batches are recomputed",
        " tokens_per_batch is 50",
    ]


def test_free_memory_of_a_gpu_by_hand(monkeypatch):
    """Of 100 GiB, 7 are for others and gaps. torch has 40, of which 30 are in use."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30 * gib)
    free = {59: 62, 55: 62, 50: 60}  # others hold 1 (the context), 5 or 10 GiB
    for reported, expected in free.items():
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device, n=reported: (n * gib, 100 * gib)
        )
        assert round(free_gpu_memory(torch.device("cuda")) / gib, 6) == expected


def test_a_resumed_run_compiles_only_what_it_compiled_before(make_config, monkeypatch):
    run = train(make_config(steps=1, save_every=1))
    monkeypatch.setattr(compiled, "AUTO_DEVICES", ("cpu",))
    checkpoint = run.path / "checkpoints" / "step-000001"
    assert saved_choices(checkpoint)["compiled"] is False
    assert not local_engine(prepare(make_config(), checkpoint=checkpoint)).compiled.is_on
