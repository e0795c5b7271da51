"""nrt's config → verl's: what nrt sets, what it refuses, and the whole of it composed. Loads neither verl nor ray by itself."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import yaml

from nrt.config import AUTO_TOKENS, Config, merge
from nrt.errors import InputError

HF_ROLLOUT = "nrt_hf"
"""The rollout of nrt.engine.verl.cpu: transformers in a process of its own."""

OURS = {
    "trainer.nnodes": "set nodes",
    "trainer.n_gpus_per_node": "set gpus_per_node",
    "trainer.device": "set device=cpu, or leave it to be cuda",
    "trainer.v1": "nrt runs its own loop, in which sampling and updates take turns",
    "actor_rollout_ref.rollout.temperature": "traces are sampled at temperature 1, from the whole distribution",
    "actor_rollout_ref.rollout.top_p": "traces are sampled at temperature 1, from the whole distribution",
    "actor_rollout_ref.rollout.top_k": "traces are sampled at temperature 1, from the whole distribution",
    "actor_rollout_ref.model.path": "set model",
    "actor_rollout_ref.actor.optim.lr": "set optimizer.lr",
    "actor_rollout_ref.actor.policy_loss": "the loss is nrt's; set method and objective",
    "actor_rollout_ref.actor.use_kl_loss": "set initial_reference",
    "actor_rollout_ref.actor.entropy_coeff": "the loss is nrt's; set method and objective",
    "actor_rollout_ref.actor.ppo_epochs": "set updates_per_rollout",
    "algorithm": "the objective is nrt's; set method and objective",
    "critic": "nrt has no critic",
    "reward": "the reward is nrt's; set method",
    "data": "set data and the max_… lengths",
}
"""Parts of verl's config that nrt answers for, and the mend."""


def refuse(config: Config) -> None:
    """Raises InputError for what this engine does not do, by name."""
    if config.overlap:
        raise InputError("engine=verl does not sample ahead; set overlap=false")
    if config.lora.rank or config.quantize:
        raise InputError("adapters and 4-bit weights have not been bridged to verl; unset lora.rank and quantize")
    if config.optimizer.name != "adamw":
        raise InputError(f"optimizer.name={config.optimizer.name} has not been bridged; set adamw, or optimizer_offload under verl")
    if config.vllm.urls:
        raise InputError("engine=verl starts its own rollout servers; unset vllm.urls, and see rollout.name under verl")
    if config.sampler_tolerance is not None:
        raise InputError(
            "engine=verl does not probe its sampler before the first step; unset sampler_tolerance, and watch sampler/logp_gap"
        )
    if config.device not in ("auto", "cuda", "cpu"):
        raise InputError(f"engine=verl trains on cuda or, for trials, on cpu, not on {config.device}; set device=auto")
    if any((text := source.reading(config.data).text) and text.at == "entropy" for source in config.data.sources("train")):
        raise InputError("data.text.at=entropy asks a model in this process, which engine=verl has none of; cut at sentences or stride")
    if config.optimizer.schedule == "linear":
        raise InputError("verl has no linear schedule; set optimizer.schedule=constant or cosine")
    if _strategy(config) not in ("dp", "megatron"):
        raise InputError(f"verl.model_engine={_strategy(config)} has not been bridged; set dp (FSDP2) or megatron")
    if rollout_name(config) not in ("vllm", "sglang", HF_ROLLOUT):
        raise InputError(
            f"rollout engine {rollout_name(config)} has not been bridged; set verl.actor_rollout_ref.rollout.name=vllm or sglang"
        )
    for path, mend in OURS.items():
        if find(config.verl, path) is not None:
            raise InputError(f"verl.{path} is not yours to set: {mend}")


def is_megatron(config: Config) -> bool:
    """Whether Megatron trains; else FSDP2 does."""
    return _strategy(config) == "megatron"


def rollout_name(config: Config) -> str:
    """What serves the rollouts."""
    return find(config.verl, "actor_rollout_ref.rollout.name") or (HF_ROLLOUT if config.device == "cpu" else "vllm")


def overrides(config: Config, *, model: str, updates: int | None, reference: bool) -> dict[str, Any]:
    """What lies over verl's defaults: nrt's settings under verl's names, then the config's own `verl`.

    `model` is the folder that holds the markers, `updates` the length of the learning-rate schedule; `reference` keeps the initial model.
    """
    tokens = AUTO_TOKENS if config.tokens_per_batch == "auto" else config.tokens_per_batch
    cpu = config.device == "cpu"
    actor: dict[str, Any] = {
        "ppo_mini_batch_size": config.batch // config.updates_per_rollout,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": tokens,
        "use_kl_loss": reference,  # verl keeps the initial model where a KL term asks for it; the loss has none
        "kl_loss_coef": 0.0,
        "optim": _optimizer(config, updates),
        "checkpoint": {"save_contents": ["model", "optimizer", "extra", "hf_model"], "load_contents": ["model", "optimizer", "extra"]},
        **(_fsdp(config) if _strategy(config) == "dp" else _megatron(config)),
    }
    given = {
        "data": {
            "max_prompt_length": config.max_prompt_tokens + 1,  # and START
            "max_response_length": config.max_trace_tokens + config.max_answer_tokens + 2,  # and the markers
        },
        "actor_rollout_ref": {
            "model": {
                "path": model,
                "trust_remote_code": config.trust_remote_code,
                "use_remove_padding": not cpu,
                "enable_gradient_checkpointing": config.gradient_checkpointing,
            },
            "actor": actor,
            **({"ref": _fsdp(config)} if _strategy(config) == "dp" else {}),  # else verl forwards the initial model in bfloat16
            "rollout": {
                "name": rollout_name(config),
                "dtype": config.dtype,
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": -1,
                "calculate_log_probs": True,
                "tensor_model_parallel_size": 1,
                "free_cache_engine": not cpu,
                "agent": {"num_workers": 1 if cpu else 8},
            },
        },
        "algorithm": {"adv_estimator": "grpo"},  # without a critic; advantages are nrt's
        "reward": {"num_workers": 0},
        "trainer": {
            "nnodes": config.nodes,
            "n_gpus_per_node": config.gpus_per_node,
            "device": "cpu" if cpu else "cuda",
            "resume_mode": "disable",
            "logger": ["console"],
        },
    }
    if cpu:
        from_cpu = {"model": {"external_lib": "nrt.engine.verl.cpu.workers", "override_config": {"+attn_implementation": "sdpa"}}}
        given = merge(given, {"actor_rollout_ref": from_cpu})
    return merge(given, config.verl)


def as_yaml(values: Mapping[str, Any]) -> str:
    """For people: what --dry-run prints."""
    return yaml.safe_dump(dict(values), sort_keys=False)


def compose(values: Mapping[str, Any]) -> Any:
    """verl's whole config as OmegaConf, resolved where it can be. A key that begins with `+` is added, as in Hydra.

    Raises InputError for a key that verl's config does not have.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    values = dict(values)
    group = values.pop("model_engine", "dp")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra_compose("ppo_trainer", overrides=[f"model_engine={group}"])
    OmegaConf.set_struct(config, False)
    for path, value in _leaves(values):
        _check_known(config, path)
        OmegaConf.update(config, ".".join(part.removeprefix("+") for part in path), value, force_add=True)
    return config


def _optimizer(config: Config, updates: int | None) -> dict[str, Any]:
    own = config.optimizer
    warmup = {"lr_warmup_steps_ratio": own.warmup} if own.warmup < 1 else {"lr_warmup_steps": int(own.warmup)}
    common = {
        "lr": own.lr,
        "weight_decay": own.weight_decay,
        "betas": list(own.betas),
        "clip_grad": own.max_grad_norm,
        "total_training_steps": -1 if updates is None else updates,
        **warmup,
    }
    if is_megatron(config):
        return {**common, "lr_decay_style": own.schedule, "override_optimizer_config": {"+adam_eps": own.eps}}
    return {**common, "lr_scheduler_type": own.schedule, "override_optimizer_config": {"eps": own.eps}}


def _fsdp(config: Config) -> dict[str, Any]:
    short = "fp32" if config.dtype == "float32" else "bf16"
    precision = {"param_dtype": short, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    own = {"model_dtype": "fp32", "+mixed_precision": precision, "use_torch_compile": config.device != "cpu"}
    return {"strategy": "fsdp2", "fsdp_config": own}


def _megatron(config: Config) -> dict[str, Any]:
    if config.dtype != "bfloat16":
        raise InputError("verl's Megatron engine trains in bfloat16; set dtype=bfloat16")
    again = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    transformer = {"override_transformer_config": again} if config.gradient_checkpointing else {}  # it does not heed the model's setting
    return {"strategy": "megatron", "megatron": transformer}


def _strategy(config: Config) -> str:
    return str(config.verl.get("model_engine", "dp"))


def find(values: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; None if nothing does."""
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _leaves(values: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not key.startswith("+"):
            yield from _leaves(value, (*before, key))
        else:
            yield (*before, key), value


def _check_known(config: Any, path: tuple[str, ...]) -> None:
    """Raises InputError unless each part is a key of verl's config, or is added below one by `+`."""
    from omegaconf import DictConfig

    node = config
    for depth, part in enumerate(path):
        if part.startswith("+") or not isinstance(node, DictConfig):
            return
        known = [str(key) for key in node.keys()]  # noqa: SIM118  (`in` does not see keys that are still to be set)
        if part not in known:
            near = get_close_matches(part, known, n=1, cutoff=0.4)
            hint = f"; did you mean '{'.'.join(('verl', *path[:depth], near[0]))}'?" if near else "."
            raise InputError(f"verl's config has no key '{'.'.join(path[: depth + 1])}'{hint} Write +{part} to add one")
        node = node._get_node(part)
