"""Loads a causal language model with its tokenizer, or says why it cannot be trained."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    logging,
    modeling_gguf_pytorch_utils,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nrt.errors import InputError, first_line

NEEDED = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
"""What a model's forward must take so that left-padded batches are exact and the head runs only where it is needed."""


def load_model(
    name: str, *, dtype: torch.dtype, device: torch.device | str, trust_remote_code: bool = False, quantize: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """Load (model, fast tokenizer) from a folder, a hub name or a GGUF file, whose weights are dequantised.

    The model is in evaluation mode, so that dropout is off. With `quantize="nf4"` its linear layers are in 4 bits, as in QLoRA.

    Raises InputError: no such model, not a causal LM, weights that are missing or damaged, a forward without the arguments `NEEDED`,
    no fast tokenizer, a package that is missing.
    """
    config = _load_config(name, trust_remote_code)
    _check_causal(name, config, trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code)
    folder, gguf = _location(name)
    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                **gguf,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **_quantized(quantize, dtype, device),
            )
    except Exception as error:  # each of transformers, torch and safetensors has its own for a file that is damaged, or no weights
        raise InputError(f"model {name}: its weights cannot be loaded: {first_line(error)}") from error
    if report["missing_keys"]:
        raise InputError(f"model {name} lacks weights for {', '.join(sorted(report['missing_keys'])[:3])}; give a complete causal LM")
    if gguf:
        _forget_gguf(model)
    absent = [argument for argument in NEEDED if argument not in inspect.signature(model.forward).parameters]
    if absent:
        raise InputError(
            f"model {name}: the forward of {type(model).__name__} takes no {' and no '.join(absent)}, so it cannot be trained on padded "
            "batches; use a decoder such as Llama, Mistral, Qwen or Gemma"
        )
    for module in model.modules() if quantize else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else bitsandbytes rounds otherwise where no gradient is wanted
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return (model if quantize else model.to(device)).eval(), tokenizer  # pyright: ignore[reportArgumentType]


def _location(name: str) -> tuple[str, dict[str, str]]:
    """What transformers' `from_pretrained` takes for a name: a folder or hub name, and for a GGUF file its name within the folder.

    Raises InputError for a GGUF file that is not there, and where the packages that read one are not installed.
    """
    if not name.endswith(".gguf"):
        return name, {}
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"model {name}: no such file")
    absent = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if absent:
        raise InputError(f"model {name}: a GGUF file is read by {' and '.join(absent)}; pip install 'native-reasoning[gguf]'")
    return str(path.parent), {"gguf_file": path.name}


def _forget_gguf(model: Any) -> None:
    """Make a dequantised model an ordinary one: transformers would save and copy it as a quantised one."""
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False


def _quantized(how: str | None, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """NF4 with quantised constants (arXiv 2305.14314). Raises InputError where bitsandbytes is not installed."""
    if how is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantize={how} needs bitsandbytes: pip install 'native-reasoning[lora]'")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=how, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def described(name: str) -> Any:
    """The model's configuration and generation configuration without its weights, under the names that a module gives them."""
    try:
        generation = GenerationConfig.from_pretrained(name)  # a GGUF file has none
    except OSError:
        generation = None
    return SimpleNamespace(config=_load_config(name, trust_remote_code=False), generation_config=generation)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA, else MPS, else the CPU. Raises InputError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in there.items() if present))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device '{name}' is none that torch knows; use auto, cuda, mps or cpu") from None
    if not there.get(device.type, True):
        raise InputError(f"device '{name}' is not there on this machine; use device=auto")
    return device


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, which would be drawn over whatever the program shows."""
    shown, gguf_bar = logging.is_progress_bar_enabled(), modeling_gguf_pytorch_utils.tqdm
    logging.disable_progress_bar()
    modeling_gguf_pytorch_utils.tqdm = lambda items, **_: items  # the GGUF reader's own bar obeys no switch
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        if shown:
            logging.enable_progress_bar()


def _load_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    location, gguf = _location(name)
    path = Path(location).expanduser()
    if not gguf:
        _check_folder(name, path)
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **gguf)
    except Exception as error:  # also of other classes, for values that no such model has
        if gguf:
            raise InputError(f"model {name} cannot be read as GGUF: {first_line(error).rstrip('.')}; is the file whole?") from error
        raise InputError(f"model {name} is neither a folder nor a model that the hub gives: {first_line(error)}") from error


def _check_folder(name: str, path: Path) -> None:
    """Raises InputError for a folder that is no model's, and for a path at which there is none."""
    meant_as_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"model {name}: the folder has no config.json; give a folder written by save_pretrained")
    if not path.is_dir() and meant_as_path:
        raise InputError(f"model {name}: no such folder")


def _check_causal(name: str, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """By what the checkpoint says it holds: BERT, too, has a causal class in transformers, but its checkpoints are not of it."""
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")]
    if not _CAUSAL_CLASSES.intersection(architectures):
        held = config.architectures[0] if config.architectures else f"a model of type {config.model_type}"
        raise InputError(f"model {name} is {held}, not a causal language model; give a decoder (…ForCausalLM)")


_CAUSAL_CLASSES = {
    cls for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for cls in (names if isinstance(names, (tuple, list)) else (names,))
}


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """A fast tokenizer. Raises InputError where there is none."""
    mend = "save a fast tokenizer (tokenizer.json) into the model's folder"
    folder, gguf = _location(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **gguf)
    except Exception as error:  # transformers raises whatever its tokenizer classes raise
        raise InputError(f"model {name} has no tokenizer: {first_line(error)}; {mend}") from error
    if not tokenizer.is_fast:
        raise InputError(f"model {name} has a slow tokenizer ({type(tokenizer).__name__}); {mend}")
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        raise InputError(f"model {name} has a tokenizer without a vocabulary; {mend}")
    return tokenizer
