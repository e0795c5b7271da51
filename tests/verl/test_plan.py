"""`nrt plan … engine=verl` against two real workers: their tensors, what a push of the weights gathers, the tokens that they forward, and
what the controller sends them; and verl's own defaults."""

# pyright: reportMissingImports=false
from dataclasses import replace

import pytest
import ray
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nrt.config import build_config
from nrt.engine.verl.batch import score_batch, update_batch
from nrt.engine.verl.bridge import compose, overrides
from nrt.plan import Lengths, Question
from nrt.plan.cluster import make_cluster_plan
from nrt.plan.cluster.layout import DEFAULTS
from nrt.plan.cluster.memory import cluster_resident
from nrt.plan.cluster.work import sent_bytes
from nrt.plan.hardware import accelerator
from nrt.plan.shapes import empty_model
from nrt.rollout import ScriptedSampler
from nrt.training.cluster import prepare_cluster

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]


@pytest.fixture(scope="module")
def config(settings):
    return build_config(settings, {"engine": "verl", "gpus_per_node": 2, "nodes": 1, "initial_reference": False})


@pytest.fixture(scope="module")
def cluster(config, tmp_path_factory):
    """A stepper whose traces all go up to the cap, and its trainer."""
    parts = prepare_cluster(config)
    sampler = ScriptedSampler(lambda prompt, n: [[5, 6, 7, 8, 9, 10]] * n)
    policy = replace(parts.stepper.policy, sampler=sampler)
    stepper = replace(parts.stepper, policy=policy, collector=replace(parts.stepper.collector, policy=policy))
    with parts.stepper.policy.engine.running(tmp_path_factory.mktemp("run")):
        yield replace(parts, stepper=stepper)


@pytest.fixture(scope="module")
def plan(config, cluster):
    (pair,) = cluster.draw(0, 1)
    return make_cluster_plan(Question(config, accelerator("cpu"), 2, lengths=Lengths(len(pair.prompt_ids), 6, len(pair.answer_ids))))


def test_what_nrt_leaves_alone_is_as_verl_has_it(config):
    for engine in ("dp", "megatron"):
        given = build_config(config.model_dump(), {"verl": {"model_engine": engine}, "dtype": "bfloat16", "device": "cuda"})
        composed = compose(overrides(given, model="m", updates=1, reference=False))
        part = "fsdp_config" if engine == "megatron" else "megatron"
        for path, value in DEFAULTS.items():
            if f".{part}." not in path:
                node = composed
                for name in path.split("."):
                    node = node[name]
                assert node == value, path


def test_workers_forward_the_planned_tokens_and_hold_the_planned_bytes(config, cluster, plan):
    workers = cluster.stepper.policy.engine.trainer.actor_rollout_wg.workers

    def count(worker):
        (actor,) = [own.actor for own in worker.worker_dict.values()]
        actor.engine.module.forwarded = 0

        def note(module, args, kwargs):
            module.forwarded += int(kwargs["attention_mask"].sum())

        actor.engine.module.register_forward_pre_hook(note, with_kwargs=True)

    def told(worker):
        (actor,) = [own.actor for own in worker.worker_dict.values()]
        state = actor.engine.optimizer.state
        held = [x.to_local() if hasattr(x, "to_local") else x for moments in state.values() for x in moments.values()]
        own = [p.to_local() for p in actor.engine.module.parameters()]
        return actor.engine.module.forwarded, *(sum(x.numel() * x.element_size() for x in xs) for xs in (own, held))

    ray.get([worker.__ray_call__.remote(count) for worker in workers])
    rollout = cluster.stepper.collect(cluster.draw, 4, seed=1)
    scored = sum(tokens for tokens, _, _ in ray.get([worker.__ray_call__.remote(told) for worker in workers]))
    cluster.stepper.update(rollout.groups)
    found = ray.get([worker.__ray_call__.remote(told) for worker in workers])
    assert scored == plan.tokens.scored
    assert sum(tokens for tokens, _, _ in found) - scored == plan.tokens.trained
    model, method = empty_model(config), cluster.stepper.method
    planned = [cluster_resident(model, config, method, plan.layout, rank) for rank in range(2)]
    assert [weights for _, weights, _ in found] == [part.masters for part in planned]
    assert [moments for _, _, moments in found] == [part.optimizer for part in planned]
    assert planned[0] == plan.memory.resident


def test_a_push_gathers_the_planned_bytes(config, cluster, plan):
    """Counted where the workers' collectives are called. The model's table is tied, and verl gathers and hands it over twice."""

    def push(worker):
        class Gathered(TorchDispatchMode):
            total = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if "all_gather_into_tensor" in str(func):
                    self.total += out.numel() * out.element_size() - args[0].numel() * args[0].element_size()
                return out

        (actor,) = [own.actor for own in worker.worker_dict.values()]
        with torch.no_grad(), Gathered() as gathered:
            handed = {name: whole.nbytes for name, whole in actor.engine.get_per_tensor_param()[0]}
        return gathered.total, sum(handed.values())

    found = ray.get([worker.__ray_call__.remote(push) for worker in cluster.stepper.policy.engine.trainer.actor_rollout_wg.workers])
    assert [gathered for gathered, _ in found] == [plan.timed.pushed.gpu_bytes] * 2
    table = empty_model(config).get_output_embeddings().weight.numel()
    assert [handed for _, handed in found] == [4 * (plan.parameters + table)] * 2


def test_the_controller_sends_the_planned_bytes(cluster, plan):
    rollout = cluster.stepper.collect(cluster.draw, 4, seed=1)
    scored = [row for group in rollout.groups for row in group.rows]
    nulls = [replace(group.rows[0], tail_ids=(*group.rows[0].tail_ids[:1], *group.rows[0].tail_ids[7:]),
                     tail_roles=(*group.rows[0].tail_roles[:1], *group.rows[0].tail_roles[7:])) for group in rollout.groups]  # fmt: skip
    credits = [credit for group in rollout.groups for credit in group.row_credits()]
    batches = [score_batch([*scored, *nulls]), update_batch(scored, credits)]
    sent = sum(size(tensor) for batch in batches for tensor in batch.values())
    back = 8 * sum(len(row.ids) for row in (*scored, *nulls))
    assert sum(len(row.ids) for row in (*scored, *nulls)) == plan.tokens.scored
    assert sent + back == sent_bytes([*scored, *nulls], scored)
    assert sent + back == pytest.approx(plan.sent, rel=0.01)  # offsets count once a batch, and there once a prompt


def size(tensor) -> int:
    if tensor.is_nested:
        return tensor.values().nbytes + tensor.offsets().nbytes
    return tensor.nbytes
