"""`nrt plan … engine=verl` against two real workers and verl's own defaults.

Compared are the workers' tensors, the bytes that a push of the weights gathers, and the tokens that
the workers forward.
"""

# pyright: reportMissingImports=false
from dataclasses import replace

import pytest
import ray
import torch
from scripted import ScriptedSampler  # pyright: ignore[reportMissingImports]
from steps import collect  # pyright: ignore[reportMissingImports]
from torch.utils._python_dispatch import TorchDispatchMode

from nrt.backends.verl.bridge import compose_config, verl_overrides
from nrt.config import build_config
from nrt.plan import PlanRequest, RowLengths
from nrt.plan.cluster import make_cluster_plan
from nrt.plan.cluster_layout import DEFAULTS
from nrt.plan.hardware import accelerator, ring_bytes
from nrt.plan.meta_model import meta_model
from nrt.plan.resident import cluster_resident, pushed_bytes
from nrt.trainer.cluster_setup import prepare_cluster
from nrt.trainer.step import update

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]


@pytest.fixture(scope="module")
def config(settings):
    return build_config(
        settings, {"engine": "verl", "gpus_per_node": 2, "nodes": 1, "initial_reference": False}
    )


@pytest.fixture(scope="module")
def cluster(config, tmp_path_factory):
    """Parts of a run whose traces all reach the cap."""
    parts = prepare_cluster(config)
    sampler = ScriptedSampler(lambda prompt, n: [[5, 6, 7, 8, 9, 10]] * n)
    policy = replace(parts.learner.policy, sampler=sampler)
    learner = replace(parts.learner, policy=policy)
    with parts.learner.policy.engine.running(tmp_path_factory.mktemp("run")):
        yield replace(parts, learner=learner)


@pytest.fixture(scope="module")
def plan(config, cluster):
    (pair,) = cluster.draw(0, 1)
    lengths = RowLengths(len(pair.prompt_ids), 6, len(pair.answer_ids))
    return make_cluster_plan(PlanRequest(config, accelerator("cpu"), 2, lengths=lengths))


@pytest.mark.parametrize(
    ("model_engine", "other_part"), [("dp", "megatron"), ("megatron", "fsdp_config")]
)
def test_the_planned_defaults_are_verls(config, model_engine, other_part):
    changes = {"verl": {"model_engine": model_engine}, "dtype": "bfloat16", "device": "cuda"}
    cuda_config = build_config(config.model_dump(), changes)
    overrides = verl_overrides(cuda_config, model="m", updates=1, reference=False)
    verl_config = compose_config(overrides)
    for path, default in DEFAULTS.items():
        if f".{other_part}." not in path:
            value = verl_config.actor_rollout_ref
            for name in path.split("."):
                value = value[name]
            assert value == default, path


def test_workers_forward_the_planned_tokens_and_hold_the_planned_bytes(config, cluster, plan):
    workers = cluster.learner.policy.engine.trainer.actor_rollout_wg.workers

    def start_counting(worker):
        (actor,) = [part.actor for part in worker.worker_dict.values()]
        actor.engine.module.forwarded = 0

        def count(module, args, kwargs):
            module.forwarded += int(kwargs["attention_mask"].sum())

        actor.engine.module.register_forward_pre_hook(count, with_kwargs=True)

    def measure(worker):
        """Return the tokens forwarded, and the bytes of this worker's weights and moments."""

        def local_bytes(tensor):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            return local.numel() * local.element_size()

        (actor,) = [part.actor for part in worker.worker_dict.values()]
        module, state = actor.engine.module, actor.engine.optimizer.state
        moments = [moment for slots in state.values() for moment in slots.values()]
        weight_bytes = sum(local_bytes(p) for p in module.parameters())
        return module.forwarded, weight_bytes, sum(local_bytes(moment) for moment in moments)

    ray.get([worker.__ray_call__.remote(start_counting) for worker in workers])
    rollout = collect(cluster.learner, cluster.draw, 4, seed=1)
    after_scoring = ray.get([worker.__ray_call__.remote(measure) for worker in workers])
    update(cluster.learner, rollout.groups)
    after_update = ray.get([worker.__ray_call__.remote(measure) for worker in workers])
    scored = sum(tokens for tokens, _, _ in after_scoring)
    assert scored == plan.tokens.scored
    assert sum(tokens for tokens, _, _ in after_update) - scored == plan.tokens.trained
    model, method = meta_model(config), cluster.learner.method
    planned = [cluster_resident(model, config, method, plan.layout, rank) for rank in range(2)]
    assert [weights for _, weights, _ in after_update] == [part.masters for part in planned]
    assert [moments for _, _, moments in after_update] == [part.optimizer for part in planned]
    assert planned[0] == plan.memory.resident


def test_a_push_gathers_the_planned_bytes(config, cluster, plan):
    """Counts the workers' all-gathers.

    The model's embeddings are tied, and verl gathers and sends them twice.
    """

    def push(worker):
        class Gathered(TorchDispatchMode):
            total = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if "all_gather_into_tensor" in str(func):
                    self.total += out.nbytes - args[0].nbytes
                return out

        (actor,) = [part.actor for part in worker.worker_dict.values()]
        with torch.no_grad(), Gathered() as gathered:
            sent = {name: tensor.nbytes for name, tensor in actor.engine.get_per_tensor_param()[0]}
        return gathered.total, sum(sent.values())

    workers = cluster.learner.policy.engine.trainer.actor_rollout_wg.workers
    measured = ray.get([worker.__ray_call__.remote(push) for worker in workers])
    model = meta_model(config)
    assert [gathered for gathered, _ in measured] == [ring_bytes(pushed_bytes(model, 2), 2)] * 2
    embeddings = model.get_output_embeddings().weight.numel()
    assert [sent for _, sent in measured] == [4 * (plan.parameters + embeddings)] * 2
