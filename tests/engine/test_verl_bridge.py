"""nrt's config → verl's, and settings that engine=verl does not support; without verl."""

import importlib.util

import pytest
import yaml
from transformers import GPT2Config, LlamaConfig

from nrt.backends.verl import requirements
from nrt.backends.verl.bridge import check_supported, dropout_keys, verl_overrides
from nrt.backends.verl.requirements import check_installed
from nrt.cli.app import main
from nrt.config import build_config, load_config, parse_overrides
from nrt.errors import InputError


def config(*settings):
    base = {"model": "m", "engine": "verl", "data": {"train": "x.jsonl"}}
    return build_config(base, parse_overrides(settings))


def overrides_of(*settings):
    return verl_overrides(config(*settings), model="/m", updates=12, reference=True)


def test_settings_under_verls_names():
    overrides = overrides_of(
        "nodes=4",
        "gpus_per_node=8",
        "tokens_per_batch=4096",
        "optimizer.eps=1e-15",
        "optimizer.warmup=0.1",
        "dtype=bfloat16",
    )
    trainer, actor = overrides["trainer"], overrides["actor_rollout_ref"]["actor"]
    assert (trainer["nnodes"], trainer["n_gpus_per_node"]) == (4, 8)
    assert (actor["use_dynamic_bsz"], actor["ppo_max_token_len_per_gpu"]) == (True, 4096)
    optim = actor["optim"]
    assert optim["override_optimizer_config"] == {"eps": 1e-15}
    assert (optim["lr_warmup_steps_ratio"], optim["total_training_steps"]) == (0.1, 12)
    assert actor["fsdp_config"]["+mixed_precision"]["param_dtype"] == "bf16"
    assert overrides["actor_rollout_ref"]["rollout"]["name"] == "vllm"


def test_settings_under_verl_override_nrts():
    rollout = overrides_of(
        "verl.actor_rollout_ref.rollout.name=sglang",
        "verl.actor_rollout_ref.rollout.tensor_model_parallel_size=4",
    )["actor_rollout_ref"]["rollout"]
    assert (rollout["name"], rollout["tensor_model_parallel_size"]) == ("sglang", 4)
    assert rollout["top_k"] == -1


def test_megatron_is_one_setting():
    actor = overrides_of(
        "verl.model_engine=megatron",
        "verl.actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8",
        "dtype=bfloat16",
        "gradient_checkpointing=false",
    )["actor_rollout_ref"]["actor"]
    assert actor["strategy"] == "megatron"
    assert "fsdp_config" not in actor
    assert "override_transformer_config" not in actor["megatron"]
    with pytest.raises(InputError, match="dtype=bfloat16"):
        overrides_of("verl.model_engine=megatron")
    for setting in ("true", "auto"):
        recomputed = overrides_of(
            "verl.model_engine=megatron", "dtype=bfloat16", f"gradient_checkpointing={setting}"
        )["actor_rollout_ref"]["actor"]["megatron"]
        assert recomputed["override_transformer_config"]["recompute_granularity"] == "full"


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("overlap=true", "overlap=false"),
        ("temperature=0.5", "temperature=1"),
        ("lora.rank=8", "lora.rank"),
        ("optimizer.name=adamw-8bit", "set adamw"),
        ("vllm.urls=[http://host:1]", "rollout servers"),
        ("sampler_tolerance=0.1", "sampler/logp_gap"),
        ("optimizer.schedule=linear", "constant or cosine"),
        ("device=mps", "device=auto"),
        ("data.text.at=entropy", "sentences or stride"),
        ("verl.model_engine=veomni", "megatron"),
        ("verl.actor_rollout_ref.rollout.name=trtllm", "name=vllm or sglang"),
        ("verl.actor_rollout_ref.rollout.temperature=0.7", "temperature 1"),
        ("verl.trainer.nnodes=2", "set nodes"),
        ("verl.algorithm.adv_estimator=gae", "objective"),
        ("verl.trainer.v1.trainer_mode=separate_async", "own loop"),
    ],
)
def test_unsupported_settings_are_rejected(setting, fix):
    with pytest.raises(InputError, match=fix):
        check_supported(config(setting))


def test_dry_run_prints_the_overrides(capsys, monkeypatch):
    settings = ["model=m", "data.train=x.jsonl", "engine=verl", "nodes=2"]
    monkeypatch.setattr("sys.argv", ["nrt", "train", "gsm8k", *settings, "--dry-run"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["nnodes"] == 2


@pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")
def test_verl_is_not_installed():
    message = r"^engine=verl needs verl, .*pip install -e '.\[verl\]'$"
    with pytest.raises(InputError, match=message):
        check_installed()


def test_missing_libraries_are_named(monkeypatch):
    missing = ("transfer_queue", "vllm")
    monkeypatch.setattr(requirements, "version", lambda name: "0.9.1")
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name in missing else object()
    )
    message = "needs TransferQueue, vllm, not installed here; pip install TransferQueue vllm$"
    with pytest.raises(InputError, match=message):
        check_installed("vllm")


def test_another_version_of_verl_is_named(monkeypatch):
    monkeypatch.setattr(requirements, "version", lambda name: "0.10.0")
    with pytest.raises(InputError, match=r"needs verl>=0.9,<0.10, and verl 0.10.0 is installed"):
        check_installed()


@pytest.mark.parametrize("recipe", ["llama-3.2-3b", "mistral-7b-v0.3", "llama-3.1-8b"])
def test_recipes_for_real_models_work_with_verl(recipe):
    check_supported(load_config(recipe, ["engine=verl", "nodes=4", "gpus_per_node=8"]))


def test_dropout_is_off():
    """verl's workers update in training mode: with dropout the ratio of a first update is not 1."""
    keys = dropout_keys(GPT2Config(attn_pdrop=0.0))
    assert keys == ["resid_pdrop", "embd_pdrop", "summary_first_dropout"]
    assert not dropout_keys(LlamaConfig())
    overrides = verl_overrides(
        config("device=cpu"), model="m", updates=1, reference=True, dropout=keys
    )
    model = overrides["actor_rollout_ref"]["model"]["override_config"]
    assert model == {**{f"+{key}": 0.0 for key in keys}, "+attn_implementation": "sdpa"}
