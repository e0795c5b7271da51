"""What to change so that a layout fits: first what costs nothing but time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nrt.plan.advice import Step, Suggestion, recompute, tried, with_values
from nrt.plan.cluster.layout import ACTOR, ROLLOUT, with_setting
from nrt.plan.cluster.planning import ClusterPlan, make_cluster_plan
from nrt.plan.cluster.work import rows_of
from nrt.plan.planning import Question
from nrt.plan.work import limit
from nrt.training.resolve import resolve_method


def advise_cluster(question: Question, plan: ClusterPlan) -> list[Step]:
    """Changes in order until the run fits; those that save nothing are left out. The last of them says whether it does."""
    return tried(question, plan, (recompute, _server, _offload, _share, _tokens, _gpus), make_cluster_plan)


def _tokens(question: Question, plan: ClusterPlan) -> Iterator[Suggestion]:
    """Halved, down to the longest row."""
    config = question.config
    rows = rows_of(config, resolve_method(config.method, config.objective), question.mean).trained
    longest, tokens = max(len(row.ids) for row in rows), min(limit(config), plan.memory.update.tokens)
    while plan.memory.updating > plan.capacity and tokens > longest:
        tokens = max(longest, tokens // 2)
        yield with_values(question, f"tokens_per_batch={tokens}", "more traffic for the same tokens", tokens_per_batch=tokens)


def _server(question: Question, plan: ClusterPlan) -> Iterator[Suggestion]:
    """Over twice as many GPUs, where not even one row fits beside a server's weights."""
    serving, size = plan.memory.serving, plan.layout.rollout_tensor
    while serving and serving.together < 1 and size < plan.layout.per_node:
        size *= 2
        yield _verl(question, f"{ROLLOUT}.tensor_model_parallel_size", size, "two reductions a layer in each decoding step")


def _offload(question: Question, plan: ClusterPlan) -> Iterator[Suggestion]:
    """What is not needed while rollouts are served goes to the machine's memory."""
    part = f"{ACTOR}.megatron" if plan.layout.megatron else f"{ACTOR}.fsdp_config"
    for name in ("optimizer_offload", "param_offload"):
        if plan.memory.sampling > plan.capacity and not getattr(plan.layout, name):
            suggestion = _verl(question, f"{part}.{name}", True, "its way to the machine's memory and back in each step")
            yield suggestion
            question = suggestion[1]


def _share(question: Question, plan: ClusterPlan) -> Iterator[Suggestion]:
    share = plan.layout.utilization
    while plan.memory.sampling > plan.capacity and share > 0.3:
        share = round(share - 0.1, 1)
        yield _verl(question, f"{ROLLOUT}.gpu_memory_utilization", share, "fewer rows decoded together")


def _gpus(question: Question, plan: ClusterPlan) -> Iterator[Suggestion]:
    """Twice as many nodes, up to 64 times."""
    for times in (2, 4, 8, 16, 32, 64):
        nodes = question.config.nodes * times
        changed = with_values(question, f"nodes={nodes}", "more GPUs", nodes=nodes)
        yield changed[0], replace(changed[1], gpus=question.gpus * times), changed[2]


def _verl(question: Question, path: str, value: Any, price: str) -> Suggestion:
    return f"verl.{path}={str(value).lower()}", replace(question, config=with_setting(question.config, path, value)), price
