"""nrt's config → verl's: settings that nrt sets or rejects, and verl's config composed.

Importing this module loads neither verl nor ray.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from nrt.config import Config, merge_settings
from nrt.errors import InputError

HF_ROLLOUT = "nrt_hf"
"""Rollout engine of `nrt.backends.verl.cpu`: transformers in a process of its own."""

FULL_DISTRIBUTION = "traces are sampled at temperature 1, from the whole distribution"

RESERVED_KEYS = {
    "trainer.nnodes": "set nodes",
    "trainer.n_gpus_per_node": "set gpus_per_node",
    "trainer.device": "set device=cpu, or leave it to be cuda",
    "trainer.v1": "nrt runs its own loop, in which sampling and updates take turns",
    "actor_rollout_ref.rollout.temperature": FULL_DISTRIBUTION,
    "actor_rollout_ref.rollout.top_p": FULL_DISTRIBUTION,
    "actor_rollout_ref.rollout.top_k": FULL_DISTRIBUTION,
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
"""Keys of verl's config that only nrt sets, and what to do instead of setting them."""


def check_supported(config: Config) -> None:
    """Raise InputError for settings that engine=verl does not support."""
    if config.overlap:
        raise InputError("engine=verl does not sample ahead; set overlap=false")
    if config.lora.rank or config.quantize:
        raise InputError(
            "engine=verl does not support adapters and 4-bit weights; unset lora.rank and quantize"
        )
    if config.optimizer.is_8_bit:
        raise InputError(
            f"engine=verl does not support optimizer.name={config.optimizer.name}; set adamw, or "
            "optimizer_offload under verl"
        )
    if config.temperature != 1:
        raise InputError(
            f"engine=verl samples at temperature 1, not {config.temperature:g}; set temperature=1, "
            "or engine=local"
        )
    if config.vllm.urls:
        raise InputError(
            "engine=verl starts its own rollout servers; unset vllm.urls, and see rollout.name "
            "under verl"
        )
    if config.sampler_tolerance is not None:
        raise InputError(
            "engine=verl does not probe its sampler before the first step; unset "
            "sampler_tolerance, and watch sampler/logp_gap"
        )
    if config.device not in ("auto", "cuda", "cpu"):
        raise InputError(
            f"engine=verl trains on cuda or, for trials, on cpu, not on {config.device}; set "
            "device=auto"
        )
    for source in config.data.sources("train"):
        text = source.rows_config(config.data).text
        if text and text.at == "entropy":
            raise InputError(
                "data.text.at=entropy needs a model in this process, and with engine=verl there is "
                "none; cut at sentences or stride"
            )
    if config.optimizer.schedule == "linear":
        raise InputError("verl has no linear schedule; set optimizer.schedule=constant or cosine")
    if _model_engine(config) not in ("dp", "megatron"):
        raise InputError(
            f"engine=verl does not support verl.model_engine={_model_engine(config)}; set dp "
            "(FSDP2) or megatron"
        )
    if rollout_name(config) not in ("vllm", "sglang", HF_ROLLOUT):
        raise InputError(
            f"engine=verl does not support the rollout engine {rollout_name(config)}; set "
            "verl.actor_rollout_ref.rollout.name=vllm or sglang"
        )
    for path, fix in RESERVED_KEYS.items():
        if setting_at(config.verl, path) is not None:
            raise InputError(f"verl.{path} cannot be set; {fix}")


def is_megatron(config: Config) -> bool:
    """True if Megatron trains; else FSDP2 does."""
    return _model_engine(config) == "megatron"


def rollout_name(config: Config) -> str:
    """Return the name of the rollout engine."""
    name = setting_at(config.verl, "actor_rollout_ref.rollout.name")
    return name or (HF_ROLLOUT if config.device == "cpu" else "vllm")


def verl_overrides(
    config: Config,
    *,
    model: str,
    updates: int | None,
    reference: bool,
    dropout: Collection[str] = (),
) -> dict[str, Any]:
    """Return what overrides verl's defaults: nrt's settings under verl's names, then `config.verl`.

    Args:
        dropout: keys of the model's config to set to 0 (`dropout_keys`).
        model: folder of the model with its markers.
        updates: length of the learning-rate schedule.
        reference: keep the initial model.
    """
    cpu = config.device == "cpu"
    settings: dict[str, Any] = {
        "data": {
            "max_prompt_length": config.max_prompt_tokens + 1,  # and START
            # and both markers
            "max_response_length": config.max_trace_tokens + config.max_answer_tokens + 2,
        },
        "actor_rollout_ref": {
            "model": {
                "path": model,
                "trust_remote_code": config.trust_remote_code,
                **({"override_config": {f"+{key}": 0.0 for key in dropout}} if dropout else {}),
                "use_remove_padding": not cpu,
                "enable_gradient_checkpointing": config.cluster_recomputes,
            },
            "actor": _actor(config, updates=updates, reference=reference),
            # with Megatron, verl forwards the initial model in bfloat16
            **({} if is_megatron(config) else {"ref": _fsdp(config)}),
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
        cpu_model = {
            "external_lib": "nrt.backends.verl.cpu.workers",
            "override_config": {"+attn_implementation": "sdpa"},
        }
        settings = merge_settings(settings, {"actor_rollout_ref": {"model": cpu_model}})
    return merge_settings(settings, config.verl)


def dropout_keys(model_config: Any) -> list[str]:
    """Return the keys of a model's config that give it dropout.

    verl's workers update in training mode, where rows would have other log-probabilities than those
    that were scored. The local engine never leaves evaluation mode.
    """
    return [
        key
        for key, value in model_config.to_dict().items()
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float) and value > 0
    ]


def compose_config(overrides: Mapping[str, Any]) -> Any:
    """Return verl's complete config with the overrides, as OmegaConf.

    As in Hydra, a key that begins with `+` is added to verl's keys. Raises InputError for a key
    that verl's config does not have.
    """
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    overrides = dict(overrides)
    group = overrides.pop("model_engine", "dp")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[f"model_engine={group}"])
    OmegaConf.set_struct(config, False)
    for path, value in _leaves(overrides):
        _check_known(config, path)
        key = ".".join(part.removeprefix("+") for part in path)
        OmegaConf.update(config, key, value, force_add=True)
    return config


def setting_at(settings: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None."""
    value: Any = settings
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _actor(config: Config, *, updates: int | None, reference: bool) -> dict[str, Any]:
    """Return the settings of the workers that train."""
    contents = ["model", "optimizer", "extra"]
    return {
        "ppo_mini_batch_size": config.batch // config.updates_per_rollout,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": config.token_limit,
        "use_kl_loss": reference,  # verl keeps the initial model for a KL term; nrt's loss has none
        "kl_loss_coef": 0.0,
        "optim": _optimizer(config, updates),
        "checkpoint": {"save_contents": [*contents, "hf_model"], "load_contents": contents},
        **(_megatron(config) if is_megatron(config) else _fsdp(config)),
    }


def _optimizer(config: Config, updates: int | None) -> dict[str, Any]:
    optimizer = config.optimizer
    settings: dict[str, Any] = {
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "betas": list(optimizer.betas),
        "clip_grad": optimizer.max_grad_norm,
        "total_training_steps": -1 if updates is None else updates,
    }
    if optimizer.warmup < 1:
        settings["lr_warmup_steps_ratio"] = optimizer.warmup
    else:
        settings["lr_warmup_steps"] = int(optimizer.warmup)
    if is_megatron(config):
        settings["lr_decay_style"] = optimizer.schedule
        settings["override_optimizer_config"] = {"+adam_eps": optimizer.eps}
    else:
        settings["lr_scheduler_type"] = optimizer.schedule
        settings["override_optimizer_config"] = {"eps": optimizer.eps}
    return settings


def _fsdp(config: Config) -> dict[str, Any]:
    precision = {
        "param_dtype": "fp32" if config.dtype == "float32" else "bf16",
        "reduce_dtype": "fp32",
        "buffer_dtype": "fp32",
    }
    fsdp_config = {
        "model_dtype": "fp32",
        "+mixed_precision": precision,
        "use_torch_compile": config.device != "cpu",
    }
    return {"strategy": "fsdp2", "fsdp_config": fsdp_config}


def _megatron(config: Config) -> dict[str, Any]:
    if config.dtype != "bfloat16":
        raise InputError("verl's Megatron engine trains in bfloat16; set dtype=bfloat16")
    megatron: dict[str, Any] = {}
    if config.cluster_recomputes:
        # Megatron ignores enable_gradient_checkpointing of the model
        megatron["override_transformer_config"] = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    return {"strategy": "megatron", "megatron": megatron}


def _model_engine(config: Config) -> str:
    return str(config.verl.get("model_engine", "dp"))


def _leaves(
    settings: Mapping[str, Any], parents: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) of each setting. A mapping under a key with `+` is one value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and not key.startswith("+"):
            yield from _leaves(value, (*parents, key))
        else:
            yield (*parents, key), value


def _check_known(config: Any, path: tuple[str, ...]) -> None:
    """Raise InputError unless verl's config has each key of the path, up to a key with `+`."""
    from omegaconf import DictConfig

    node = config
    for depth, part in enumerate(path):
        if part.startswith("+") or not isinstance(node, DictConfig):
            return
        # `in` does not see keys whose value is still missing
        known = [str(key) for key in node.keys()]  # noqa: SIM118
        if part not in known:
            closest = get_close_matches(part, known, n=1)
            hint = "."
            if closest:
                suggestion = ".".join(("verl", *path[:depth], closest[0]))
                hint = f"; did you mean '{suggestion}'?"
            key = ".".join(path[: depth + 1])
            raise InputError(f"verl's config has no key '{key}'{hint} Write +{part} to add one")
        node = node._get_node(part)
