"""What nrt tells verl, and what it refuses; without verl."""

import importlib.util

import pytest
import yaml

from nrt.cli import main
from nrt.config import build_config, load_config, parse_overrides
from nrt.engine.verl.bridge import overrides, refuse
from nrt.engine.verl.requirements import check_installed
from nrt.errors import InputError


def config(*settings):
    return build_config({"model": "m", "engine": "verl", "data": {"train": "x.jsonl"}}, parse_overrides(settings))


def bridged(*settings):
    return overrides(config(*settings), model="/m", updates=12, reference=True)


def test_settings_go_over_under_verls_names():
    values = bridged("nodes=4", "gpus_per_node=8", "tokens_per_batch=4096", "optimizer.eps=1e-15", "optimizer.warmup=0.1", "dtype=bfloat16")
    actor = values["actor_rollout_ref"]["actor"]
    assert (values["trainer"]["nnodes"], values["trainer"]["n_gpus_per_node"]) == (4, 8)
    assert (actor["use_dynamic_bsz"], actor["ppo_max_token_len_per_gpu"]) == (True, 4096)
    assert actor["optim"]["override_optimizer_config"] == {"eps": 1e-15}
    assert (actor["optim"]["lr_warmup_steps_ratio"], actor["optim"]["total_training_steps"]) == (0.1, 12)
    assert actor["fsdp_config"]["+mixed_precision"]["param_dtype"] == "bf16"
    assert values["actor_rollout_ref"]["rollout"]["name"] == "vllm"


def test_the_configs_own_mapping_lies_over_all():
    values = bridged("verl.actor_rollout_ref.rollout.name=sglang", "verl.actor_rollout_ref.rollout.tensor_model_parallel_size=4")
    rollout = values["actor_rollout_ref"]["rollout"]
    assert (rollout["name"], rollout["tensor_model_parallel_size"], rollout["top_k"]) == ("sglang", 4, -1)


def test_megatron_is_one_setting():
    values = bridged("verl.model_engine=megatron", "verl.actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8", "dtype=bfloat16")
    actor = values["actor_rollout_ref"]["actor"]
    assert actor["strategy"] == "megatron"
    assert "fsdp_config" not in actor
    with pytest.raises(InputError, match="dtype=bfloat16"):
        bridged("verl.model_engine=megatron")
    again = bridged("verl.model_engine=megatron", "dtype=bfloat16", "gradient_checkpointing=true")["actor_rollout_ref"]["actor"]["megatron"]
    assert again["override_transformer_config"]["recompute_granularity"] == "full"
    assert "override_transformer_config" not in actor["megatron"]


@pytest.mark.parametrize(
    ("setting", "mend"),
    [
        ("overlap=true", "overlap=false"),
        ("lora.rank=8", "lora.rank"),
        ("optimizer.name=adamw-8bit", "set adamw"),
        ("vllm.urls=[http://there:1]", "rollout servers"),
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
def test_what_is_not_supported_is_refused_by_name(setting, mend):
    with pytest.raises(InputError, match=mend):
        refuse(config(setting))


def test_dry_run_prints_it(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nrt", "train", "gsm8k", "model=m", "data.train=x.jsonl", "engine=verl", "nodes=2", "--dry-run"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["nnodes"] == 2


@pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")
def test_what_is_missing_is_said_in_one_line():
    with pytest.raises(InputError, match=r"^engine=verl needs verl, .*pip install 'native-reasoning\[verl\]'$"):
        check_installed()


def test_a_missing_library_and_another_version_are_named(monkeypatch):
    monkeypatch.setattr("nrt.engine.verl.requirements.version", lambda name: "0.9.1")
    monkeypatch.setattr("nrt.engine.verl.requirements.find_spec", lambda name: None if name in ("transfer_queue", "vllm") else object())
    with pytest.raises(InputError, match=r"needs TransferQueue, vllm, not installed here; pip install TransferQueue vllm$"):
        check_installed("vllm")
    monkeypatch.setattr("nrt.engine.verl.requirements.version", lambda name: "0.10.0")
    with pytest.raises(InputError, match=r"needs verl>=0.9,<0.10, and verl 0.10.0 is installed"):
        check_installed()


@pytest.mark.parametrize("recipe", ["llama-3.2-3b", "mistral-7b-v0.3", "llama-3.1-8b"])
def test_recipes_for_real_models_are_verls_too(recipe):
    refuse(load_config(recipe, ["engine=verl", "nodes=4", "gpus_per_node=8"]))
