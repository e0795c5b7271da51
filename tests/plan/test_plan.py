"""`nrt plan` against the real thing: the engine's own tensors, what autograd saves, the floating-point operations that torch counts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Shape, draw, llama, make_stepper
from nrt.config import Config, build_config
from nrt.engine.weights import Weights, layers_of, recomputing
from nrt.errors import InputError
from nrt.lab.base import BaseSettings, _build_model
from nrt.models import Adapters, add_adapters
from nrt.objective import METHODS
from nrt.plan import Lengths, Question, advise, make_plan
from nrt.plan.counting import Meter, count_token, count_update
from nrt.plan.hardware import accelerator
from nrt.plan.memory import Rollout, Vllm, resident
from nrt.plan.shapes import NAMED, empty_model
from nrt.plan.work import count_flops, count_tokens, forwarded, group_rows, micro_batch
from nrt.rollout.shared import SharedDecoder
from nrt.scoring import choose_scorer
from nrt.training.sampler import bytes_to_come
from tests.tiny import tiny_model

METHOD = METHODS["nrt-ws-neg-log-p"]
GIB = 2**30


def real_model(name: str, dtype: str = "float32"):
    """With the two markers' rows."""
    if name == "miniature":
        return _build_model(BaseSettings()).to(getattr(torch, dtype)).eval()
    if name in ("3m", "30m"):
        return llama(name, vocabulary=512, dtype=getattr(torch, dtype))
    return tiny_model(name, vocab_size=512).to(getattr(torch, dtype))


@pytest.fixture
def described(tmp_path):
    """described(name, batch=4) → (real model, config whose model is a folder with nothing but config.json)."""

    def make(name: str, dtype: str = "float32", **values) -> tuple[torch.nn.Module, Config]:
        model = real_model(name, dtype)
        shape = type(model.config)(**model.config.to_dict())
        shape.vocab_size -= 2
        shape.save_pretrained(tmp_path / "model")
        small = {"batch": 3, "traces": 4, "max_prompt_tokens": 40, "max_trace_tokens": 30, "max_answer_tokens": 20}
        return model, build_config({"model": str(tmp_path / "model"), "dtype": dtype} | small | values)

    return make


def lengths(config: Config) -> Lengths:
    return Lengths.caps(config)


def stepper_of(model, config: Config):
    shape = Shape(config.batch, config.traces, config.max_prompt_tokens, config.max_trace_tokens, config.max_answer_tokens)
    stepper = make_stepper(model, shape, tokens_per_batch=16384, initial_reference=config.initial_reference)
    return stepper, partial(stepper.collect_and_update, draw(shape), config.batch, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["miniature", "3m", "30m"])
def test_what_stays_in_memory_is_the_engines_to_the_byte(described, name, dtype):
    model, config = described(name, dtype)
    planned = resident(empty_model(config), config, METHOD, gpus=1, parallel="ddp")
    stepper, _ = stepper_of(model, config)
    engine = stepper.policy.engine
    assert engine.reference is not None
    assert isinstance(engine.weights, Weights)
    for master in engine.weights.masters.values():
        engine.weights.gradient_of(next(p for n, p in model.named_parameters() if engine.weights.masters[n] is master))
    engine.optimizer.step()
    assert planned.weights == size(model.parameters())
    assert planned.masters == size(engine.weights.copies.values())
    assert planned.gradients == size(master.grad for master in engine.weights.masters.values())
    assert planned.optimizer == size(x for state in engine.optimizer.state.values() for x in state.values())
    assert planned.reference == size(engine.reference.parameters())
    assert planned.sampler == 0
    assert planned.total == pytest.approx((18 if dtype == "bfloat16" else 16) * count(model) + planned.reference, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_divide_what_is_trained(described, dtype):
    """16 bytes a parameter over all GPUs in both types: a short copy of the weights stands only while it is needed."""
    _, config = described("3m", dtype, batch=4)
    model = empty_model(config)
    whole, shard = (resident(model, config, METHOD, gpus=n, parallel="fsdp") for n in (1, 4))
    for part in ("masters", "gradients", "optimizer", "reference"):
        assert getattr(shard, part) == getattr(whole, part) // 4
    assert shard.total - shard.reference == pytest.approx(16 * count(model) / 4, rel=1e-3)
    assert resident(model, config, METHOD, gpus=4, parallel="ddp") == whole
    plan = make_plan(Question(config, accelerator("cpu"), gpus=4, parallel="fsdp"))
    assert plan.memory.rollout is not None
    assert plan.memory.rollout.gathered == whole.weights
    assert 0 < plan.memory.update.gathered < 2 * whole.weights + whole.gradients


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_counted_as_the_engine_has_them(described, dtype):
    """Frozen weights, adapters and the markers' rows with all that belongs to them to the byte, activations within 2 %, work within 1 %."""
    model, config = described("3m", dtype, lora={"rank": 4})
    empty = empty_model(config)
    add_adapters(model, Adapters(4, 8.0), [510, 511])
    planned = resident(empty, config, METHOD, gpus=1, parallel="ddp")
    shape = Shape(config.batch, config.traces, config.max_prompt_tokens, config.max_trace_tokens, config.max_answer_tokens)
    stepper = make_stepper(model, shape, tokens_per_batch=16384, initial_reference=False)
    engine = stepper.policy.engine
    assert planned.weights == size({x.untyped_storage().data_ptr(): x for x in sorted(model.parameters(), key=torch.numel)}.values())
    counts = count_flops(config, METHOD, lengths(config), count_token(empty), frozen_head=True)
    with FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
        stepper.collect_and_update(draw(shape), config.batch, seed=0)
    assert counts.update + counts.rollout == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert planned.masters == size(engine.weights.copies.values()) * (dtype == "bfloat16")
    assert planned.gradients == size(master.grad for master in engine.weights.masters.values())
    assert planned.optimizer == size(x for state in engine.optimizer.state.values() for x in state.values())
    assert planned.reference == 0
    rows = tuple(micro_batch(config, METHOD, lengths(config), config.batch))
    kept = count_update(empty, rows, recompute=False, kind="cpu").kept
    assert kept == pytest.approx(saved_bytes(engine, rows), rel=0.02)


def test_a_model_is_cut_into_shards_where_a_replica_takes_too_much():
    small, large = (build_config({"model": name, "dtype": "bfloat16"}) for name in ("llama-3.2-1b", "llama-3.2-3b"))
    plans = [make_plan(Question(config, accelerator("h100"), gpus=8)) for config in (small, large)]
    assert [plan.parallel for plan in plans] == ["ddp", "fsdp"]
    assert make_plan(Question(large, accelerator("h100"), gpus=8, parallel="ddp")).parallel == "ddp"


@pytest.mark.parametrize(
    ("name", "dtype", "recompute"),
    [
        *[(*case, False) for case in (("miniature", "float32"), ("3m", "float32"), ("3m", "bfloat16"), ("30m", "float32"))],
        *[(*case, True) for case in (("miniature", "float32"), ("3m", "float32"), ("3m", "bfloat16"), ("30m", "float32"))],
        ("qwen3", "float32", False),
    ],
)
def test_activations_are_what_autograd_saves(described, name, dtype, recompute):
    """Within 2 % of the bytes of all storages that the real forward saves, parameters left out; within 10 % where layers are recomputed,
    whose rotary tables are held by the layers' arguments and not by autograd."""
    model, config = described(name, dtype)
    rows = tuple(micro_batch(config, METHOD, lengths(config), config.batch))
    planned = count_update(empty_model(config), rows, recompute=recompute, kind="cpu")
    engine = stepper_of(model, config)[0].policy.engine
    with recomputing(layers_of(model) if recompute else ()):
        assert planned.kept == pytest.approx(saved_bytes(engine, rows), rel=0.10 if recompute else 0.02)


def saved_bytes(engine, rows) -> int:
    """Of all storages that the forward saves for the backward, parameters left out."""
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        engine.scorer(engine.model, rows)
    own = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    return sum(storage.nbytes() for at, storage in saved.items() if at not in own)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_highest_point_of_an_update(described, recompute):
    """Within 15 % of the bytes of all tensors alive at once in a real forward and backward on a CPU."""
    model, config = described("3m", max_prompt_tokens=200, max_trace_tokens=100, max_answer_tokens=100)
    rows = tuple(micro_batch(config, METHOD, lengths(config), config.batch))
    planned = count_update(empty_model(config), rows, recompute=recompute, kind="cpu")
    engine = stepper_of(model, config)[0].policy.engine
    assert isinstance(engine.weights, Weights)
    for parameter in model.parameters():
        engine.weights.gradient_of(parameter)
    with Meter() as meter, recomputing(layers_of(model) if recompute else ()):
        engine.scorer(model, rows).logp_N.sum().backward()
    assert planned.peak == pytest.approx(meter.peak, rel=0.15)


def test_keys_and_values_are_the_decoders(described):
    model, config = described("3m")
    plan = make_plan(Question(config, accelerator("cpu")))
    choose_scorer(model, 0)
    prompts = [tuple([5 + b] * (config.max_prompt_tokens + 1)) for b in range(config.batch) for _ in range(config.traces)]
    with torch.no_grad():
        decoder = SharedDecoder(model, prompts, 0, config.max_trace_tokens)
        decoder.advance(torch.zeros(len(prompts), dtype=torch.long))
    assert isinstance(plan.memory.rollout, Rollout)
    assert plan.memory.rollout.rows == len(prompts)
    assert plan.memory.rollout.prompts == sum(size([layer.prompt_keys, layer.prompt_values]) for layer in decoder._layers)
    assert plan.memory.rollout.cache == sum(size([layer.own_keys, layer.own_values]) for layer in decoder._layers)


def attention_flops(q, k, v, dropout=0.0, is_causal=False, **_) -> int:
    """Of one call of the CPU's flash attention; a triangle counts its diagonal and what is below."""
    rows, keys = q[2], k[2]
    pairs = rows * (rows + 1) // 2 if is_causal else rows * keys
    return 2 * q[0] * q[1] * (q[3] + v[3]) * pairs


def backward_flops(grad, q, k, v, out, lse, dropout, is_causal, **_) -> int:
    return attention_flops(q, k, v, dropout, is_causal) * 5 // 2


MAPPING = {
    torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_flops,
}


"""What torch's counter leaves out."""


@pytest.mark.parametrize(
    "shape", [{}, {"traces": 2, "max_prompt_tokens": 300}, {"gradient_checkpointing": True}, {"initial_reference": False, "batch": 1}]
)
@pytest.mark.parametrize("name", ["3m", "qwen3"])
def test_flops_are_those_that_torch_counts(described, name, shape):
    """Of a whole step: sampling, the initial model, one pass with its backward; within 1 %."""
    model, config = described(name, **shape)
    planned = count_flops(config, METHOD, lengths(config), count_token(empty_model(config)))
    stepper, step = stepper_of(model, config)
    if config.gradient_checkpointing:
        stepper.policy.engine.recomputed = layers_of(model)
    with FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
        step()
    assert planned.total == pytest.approx(counter.get_total_flops(), rel=0.01)


def note(seen, name, module, given, output) -> None:
    seen[name] += given[0].numel()


@pytest.mark.parametrize("values", [{}, {"initial_reference": False}, {"tokens_per_batch": 150}])
def test_tokens_are_those_that_pass_the_embeddings(described, values):
    """Also where a group is larger than a micro-batch: it is scored first, and each part forwards the prompt again."""
    model, config = described("3m", **values)
    planned = count_tokens(config, METHOD, lengths(config))
    stepper, step = stepper_of(model, config)
    stepper.policy.engine.tokens_per_batch = 16384 if config.tokens_per_batch == "auto" else config.tokens_per_batch
    seen = {"own": 0, "initial": 0}
    for name, one in (("own", model), ("initial", stepper.policy.engine.reference)):
        if one is not None:
            one.get_input_embeddings().register_forward_hook(partial(note, seen, name))  # pyright: ignore[reportCallIssue]
    step()
    decoded = planned.sampled - config.batch * config.traces  # the last token of a trace is not forwarded
    assert sum(seen.values()) == planned.prefilled + decoded + planned.scored + planned.trained


def test_a_shared_prompt_counts_once():
    """docs/performance.md's example."""
    config = build_config({"batch": 1, "initial_reference": False})
    tokens = count_tokens(config, METHOD, Lengths(1000, 300, 200))
    assert tokens.trained == 1000 + 8 * (300 + 200 + 1) + 200 + 1 == 5209
    assert tokens.unshared == 8 * 1501 + 1201
    assert (tokens.scored, tokens.null, tokens.sampled) == (0, 201, 2400)


def test_several_updates_score_first_and_train_without_the_null_trace():
    config = build_config({"batch": 8, "updates_per_rollout": 4, "initial_reference": False})
    rows = group_rows(config, METHOD, Lengths(10, 20, 30))
    assert (forwarded(rows.scored), forwarded(rows.trained)) == (10 + 8 * 51 + 31, 10 + 8 * 51)
    sft = group_rows(config, METHODS["sft"], Lengths(10, 20, 30))
    assert (sft.scored, sft.initial, forwarded(sft.trained)) == ((), (), 39)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("llama-3.2-1b", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_named_models_have_their_published_sizes(name, parameters):
    """Without the markers' two rows, of which an untied model has two tables."""
    model = empty_model(build_config({"model": name}))
    shape = NAMED[name.rpartition("/")[2].lower()]
    rows = 2 * shape["hidden_size"] * (1 if shape.get("tie_word_embeddings") else 2)
    assert count(model) - rows == parameters


def test_advice_adds_up_and_ends_with_a_run_that_fits():
    config = build_config({"model": "llama-3.2-3b", "dtype": "float32", "batch": 256, "updates_per_rollout": 4, "overlap": True})
    question = Question(config, accelerator("h200"))
    plan = make_plan(question)
    steps = advise(question, plan)
    assert not plan.fits
    assert [step.change.partition("=")[0] for step in steps][:2] == ["sampler_rows", "gradient_checkpointing"]
    assert [step.fits for step in steps] == [False] * (len(steps) - 1) + [True]
    changed = Question(build_config(config.model_dump(), *({k: parsed(v)} for k, _, v in (s.change.partition("=") for s in steps))),
                       question.gpu)  # fmt: skip
    assert make_plan(changed).fits


def test_where_weights_are_too_much_adapters_are_proposed_first():
    question = Question(build_config({"model": "llama-3.1-8b", "dtype": "bfloat16"}), accelerator("rtx4090"))
    steps = advise(question, make_plan(question))
    assert [step.change for step in steps][:3] == ["initial_reference=false", "lora.rank=16", "quantize=nf4"]
    assert steps[-1].fits


def test_what_no_setting_mends_is_said():
    question = Question(build_config({"model": "llama-3.1-8b", "dtype": "bfloat16", "lora": {"rank": 8}}), accelerator("rtx4090", 6))
    assert not any(step.fits for step in advise(question, make_plan(question)))


def vllm_plan(gpu="h100", gpus=1, **settings):
    values = {"model": "llama-3.2-1b", "dtype": "bfloat16", "batch": 16, "sampler": "vllm", "gradient_checkpointing": True}
    return make_plan(Question(build_config(values | settings), accelerator(gpu), gpus))


def test_vllm_takes_what_the_trainer_leaves():
    plan = vllm_plan()
    rollout, stays = plan.memory.rollout, plan.memory.resident
    assert isinstance(rollout, Vllm)
    assert rollout.weights == stays.weights
    assert stays.sampler == 0, "it sleeps during updates"
    assert rollout.taken == pytest.approx(rollout.share * plan.capacity, abs=1)
    assert 0.98 * plan.capacity < plan.memory.sampling <= plan.capacity
    assert plan.memory.updating == vllm_plan(sampler="hf").memory.updating


def test_vllm_that_does_not_sleep_has_half_of_it_all_the_time():
    awake, asleep = vllm_plan(vllm={"sleep": 0}).memory, vllm_plan().memory
    assert isinstance(awake.rollout, Vllm)
    assert isinstance(asleep.rollout, Vllm)
    assert awake.rollout.share == pytest.approx(asleep.rollout.share / 2, abs=0.01)
    assert awake.resident.sampler == awake.rollout.taken
    assert awake.sampling == awake.resident.total + awake.reserve


def test_servers_take_nothing_here():
    plan = vllm_plan(vllm={"urls": ("http://there:1",)})
    assert plan.memory.rollout is None
    assert plan.memory.resident.sampler == 0
    assert plan.seconds.rollout > 0


def test_a_share_that_is_too_large_is_mended():
    values = {"model": "llama-3.2-3b", "dtype": "bfloat16", "sampler": "vllm", "gradient_checkpointing": True, "vllm": {"memory": 0.6}}
    question = Question(build_config(values), accelerator("h100"))
    steps = advise(question, make_plan(question))
    assert [step.change for step in steps] == ["vllm.memory=null"]
    assert steps[0].fits


def test_where_vllm_has_no_room_the_plan_does_not_fit():
    plan = vllm_plan(model="llama-3.1-8b", gpu="h200")
    assert not plan.fits


def test_the_run_expects_of_its_first_update_what_the_plan_does(described):
    model, config = described("3m", "bfloat16")
    stepper, _ = stepper_of(model, config)
    planned = resident(empty_model(config), config, METHOD, gpus=1, parallel="ddp")
    assert bytes_to_come(stepper.policy.engine, "adamw") == planned.gradients + planned.optimizer


def test_hours_follow_from_steps_and_seconds():
    config = build_config({"model": "llama-3.2-3b", "dtype": "bfloat16", "batch": 256})
    plan = make_plan(Question(config, accelerator("h100"), gpus=8, rows=204_800, price=2.0))
    assert plan.steps == 800
    assert plan.hours is not None
    assert plan.hours == pytest.approx(800 * plan.seconds.total / 3600)
    assert plan.cost == pytest.approx(plan.hours * 8 * 2.0)
    assert make_plan(Question(config, accelerator("h100"))).hours is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": None}, "model=FOLDER"),
        ({"model": "/nowhere/at/all"}, "no config.json"),
        ({"model": "llama-3.2-3b", "method": "nrt-mg"}, "nrt-gm"),
    ],
)
def test_what_cannot_be_planned_is_said(values, said):
    with pytest.raises(InputError, match=said):
        make_plan(Question(build_config(values), accelerator("h100"), gpus=2))


def test_gpus_are_known_by_name():
    with pytest.raises(InputError, match="did you mean 'h100'"):
        accelerator("h10")
    assert accelerator("h100", memory=94).memory == 94 * GIB


def size(tensors) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def parsed(text: str):
    return {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)
