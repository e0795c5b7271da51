"""Folders: what is written loads in plain transformers and gives the same numbers; what cannot be trained is refused by name."""

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

SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def load(folder: Path) -> tuple[Any, Any]:
    return load_model(str(folder), dtype=torch.float32, device="cpu")


def built(architecture: str = "llama", **changes: Any) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    model = hostile(tiny_model(architecture, vocab_size=len(tokenizer), **changes))
    add_markers(model, tokenizer, MarkersConfig())
    return model, tokenizer


@pytest.mark.parametrize("architecture", ["llama", "llama-tied-mha", "gemma2", "qwen3"])
def test_a_saved_model_is_an_ordinary_folder(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = built(architecture)
    template = CHAT_TEMPLATE + "{# exported #}"
    save_model(model, tokenizer, tmp_path / "model", template=template)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    reread = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "we have<|think_start|>3 ;<|think_end|>\n"
    assert reread(text).input_ids == tokenizer(text).input_ids
    assert {"<|think_start|>", "<|think_end|>"} <= set(reread.all_special_tokens) | set(reread.get_added_vocab())
    assert reread.decode(reread(text).input_ids, skip_special_tokens=True) == "we have3 ;\n"
    assert reread.chat_template == template
    ids = torch.tensor([tokenizer(text).input_ids])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert list((tmp_path / "model").glob("*.safetensors"))
    assert not list((tmp_path / "model").glob("*.bin"))


def test_generation_config_has_the_ends_and_nothing_to_sample_by(tmp_path: Path) -> None:
    model, tokenizer = built()
    model.config.eos_token_id = [EOS, 9]
    before = model.generation_config
    save_model(model, tokenizer, tmp_path / "model", template=None)
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert set(written) <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
    assert written["eos_token_id"] == [EOS, 9]
    assert model.generation_config is before  # model and tokenizer are as they were
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    model, tokenizer = built()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale").touch()
    (tmp_path / ".model.0123456789abcdef.new").mkdir()  # left behind by a crash
    os.utime(tmp_path / ".model.0123456789abcdef.new", (0, 0))  # long ago
    save_model(model, tokenizer, folder, template=None)
    assert not (folder / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path) -> None:
    model, tokenizer = built()
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder, template=None)
    before = sorted(path.name for path in folder.iterdir())
    model.config.note = object()  # cannot be written
    with pytest.raises(TypeError):
        save_model(model, tokenizer, folder, template=None)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_round_trip_through_load_model(tmp_path: Path) -> None:
    model, tokenizer = built("gemma3", attention_dropout=0.1)
    save_model(model, tokenizer, tmp_path / "model", template=CHAT_TEMPLATE)
    loaded, reread = load(tmp_path / "model")
    ids = torch.tensor([[5, 6, 7]])
    assert not loaded.training
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert len(reread) == len(tokenizer)
    half, _ = load_model(str(tmp_path / "model"), dtype=torch.bfloat16, device="cpu")
    assert half.dtype == torch.bfloat16


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(folder)


def test_no_such_model(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "no config.json")


def test_encoders_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path)
    refused(tmp_path, "BertForMaskedLM, not a causal language model")
    T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)).save_pretrained(tmp_path)
    refused(tmp_path, "T5ForConditionalGeneration, not a causal language model")


def test_a_headless_decoder_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    LlamaModel(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    refused(tmp_path, "LlamaModel, not a causal")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    LlamaModel(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    refused(tmp_path, "lacks weights for lm_head.weight")


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    refused(tmp_path, "tokenizer")


def test_a_forward_without_positions_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_model("bloom", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    refused(tmp_path, "takes no position_ids")


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(InputError, match="use auto"):
        pick_device("gpu")
    absent = "mps" if torch.cuda.is_available() else "cuda"  # no machine has both
    with pytest.raises(InputError, match="device=auto"):
        pick_device(absent)


def test_a_gguf_file_that_is_none_or_is_not_there(tmp_path):
    """What is inside a whole one is read in tests/real."""
    file = tmp_path / "model.gguf"
    with pytest.raises(InputError, match=r"model\.gguf: no such file"):
        load_model(str(file), dtype=torch.float32, device="cpu")
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(InputError, match=r"cannot be read as GGUF.*is the file whole") as caught:
        load_model(str(file), dtype=torch.float32, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_gguf_file_without_its_reader(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(InputError, match=r"read by gguf; pip install 'native-reasoning\[gguf\]'"):
        load_model(str(file), dtype=torch.float32, device="cpu")
