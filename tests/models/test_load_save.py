"""Saved folders load in transformers with the same logits; untrainable models are refused."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from nrt.config import MarkersConfig
from nrt.errors import InputError
from nrt.models import add_markers, load_model, pick_device, save_model
from tests.tiny import CHAT_TEMPLATE, EOS, hostile, tiny_model, tiny_tokenizer

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def load(folder: Path) -> tuple[Any, Any]:
    return load_model(str(folder), dtype=torch.float32, device="cpu")


def build(architecture: str = "llama", **changes: Any) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    model = hostile(tiny_model(architecture, vocab_size=len(tokenizer), **changes))
    add_markers(model, tokenizer, MarkersConfig())
    return model, tokenizer


@pytest.mark.parametrize("architecture", ["llama", "llama-tied-mha", "gemma2", "qwen3"])
def test_a_saved_model_is_an_ordinary_folder(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = build(architecture)
    template = CHAT_TEMPLATE + "{# exported #}"
    save_model(model, tokenizer, tmp_path / "model", template=template)
    attention = (
        model.config._attn_implementation
    )  # sdpa of earlier releases drops Gemma 2's softcap
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation=attention
    ).eval()
    reread = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "we have<|think_start|>3 ;<|think_end|>\n"
    assert reread(text).input_ids == tokenizer(text).input_ids
    known = {*reread.all_special_tokens, *reread.get_added_vocab()}
    assert {"<|think_start|>", "<|think_end|>"} <= known
    assert reread.decode(reread(text).input_ids, skip_special_tokens=True) == "we have3 ;\n"
    assert reread.chat_template == template
    ids = torch.tensor([tokenizer(text).input_ids])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert list((tmp_path / "model").glob("*.safetensors"))
    assert not list((tmp_path / "model").glob("*.bin"))


def test_generation_config_has_only_special_tokens(tmp_path: Path) -> None:
    model, tokenizer = build()
    model.config.eos_token_id = [EOS, 9]
    original = model.generation_config
    save_model(model, tokenizer, tmp_path / "model", template=None)
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert set(saved) <= {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "_from_model_config",
    }
    assert saved["eos_token_id"] == [EOS, 9]
    # model and tokenizer are unchanged
    assert model.generation_config is original
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    model, tokenizer = build()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale").touch()
    leftover = tmp_path / ".model.0123456789abcdef.new"  # of a crash long ago
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    save_model(model, tokenizer, folder, template=None)
    assert not (folder / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path) -> None:
    model, tokenizer = build()
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder, template=None)
    files = sorted(path.name for path in folder.iterdir())
    model.config.note = object()  # no JSON
    with pytest.raises(TypeError):
        save_model(model, tokenizer, folder, template=None)
    assert sorted(path.name for path in folder.iterdir()) == files


def test_round_trip_through_load_model(tmp_path: Path) -> None:
    model, tokenizer = build("gemma3", attention_dropout=0.1)
    save_model(model, tokenizer, tmp_path / "model", template=CHAT_TEMPLATE)
    loaded, reread = load(tmp_path / "model")
    ids = torch.tensor([[5, 6, 7]])
    assert not loaded.training
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert len(reread) == len(tokenizer)
    half, _ = load_model(str(tmp_path / "model"), dtype=torch.bfloat16, device="cpu")
    assert half.dtype == torch.bfloat16


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(folder)


def test_no_such_model(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "no such folder")
    assert_refused(tmp_path, "no config.json")


def test_encoders_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path)
    assert_refused(tmp_path, "BertForMaskedLM, not a causal language model")
    config = T5Config(vocab_size=300, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert_refused(tmp_path, "T5ForConditionalGeneration, not a causal language model")


def test_a_headless_decoder_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    LlamaModel(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    assert_refused(tmp_path, "LlamaModel, not a causal")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    LlamaModel(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_refused(tmp_path, "lacks weights for lm_head.weight")


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert_refused(tmp_path, "tokenizer")


def test_a_forward_without_positions_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_model("bloom", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    assert_refused(tmp_path, "takes no position_ids")


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(InputError, match="use auto"):
        pick_device("gpu")
    absent = "mps" if torch.cuda.is_available() else "cuda"  # no machine has both
    with pytest.raises(InputError, match="device=auto"):
        pick_device(absent)
    with pytest.raises(InputError, match="'cuda:99' is not available"):
        pick_device("cuda:99")


def test_a_missing_or_damaged_gguf_file(tmp_path):
    """tests/real loads an intact file."""
    file = tmp_path / "model.gguf"
    with pytest.raises(InputError, match=r"model\.gguf: no such file"):
        load_model(str(file), dtype=torch.float32, device="cpu")
    file.write_bytes(b"GGUF" + bytes(20))
    message = r"cannot be read as GGUF.*is the file complete"
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(file), dtype=torch.float32, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_gguf_file_without_the_packages_that_read_it(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    with pytest.raises(
        InputError, match=r"needs gguf; in the folder of nrt's clone run pip install -e '.\[gguf\]'"
    ):
        load_model(str(file), dtype=torch.float32, device="cpu")
