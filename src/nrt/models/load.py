"""Load a causal language model and its tokenizer, or explain why the model cannot be trained."""

from __future__ import annotations

import importlib.util
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

from nrt.errors import InputError, did_you_mean, first_line, install_hint
from nrt.models.forward import check_forward

MODEL_FORMS = "give a folder written by save_pretrained, a hub name or a .gguf file"
"""What a model can be, for messages."""


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load (model, fast tokenizer) from a folder, by a hub name or from a GGUF file.

    The model is in evaluation mode, so dropout is off. The weights of a GGUF file are dequantised.
    With `quantize="nf4"` the linear layers are stored in 4 bits, as in QLoRA.

    Raises InputError if there is no such model, if it is not a causal LM, if weights are missing or
    damaged, if the forward lacks an argument that nrt gives, if there is no fast tokenizer, or if a
    package is not installed.
    """
    config = _load_config(name, trust_remote_code)
    _check_causal(name, config, trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code)
    folder, gguf = _from_pretrained_arguments(name)
    try:
        with hide_progress_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                **gguf,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **_quantization_arguments(quantize, dtype, device),
            )
    except Exception as error:
        # transformers, torch and safetensors each raise their own class for a damaged file
        raise InputError(
            f"model {name}: its weights cannot be loaded: {first_line(error)}"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise InputError(f"model {name} lacks weights for {missing}; give a complete causal LM")
    if gguf:
        _forget_gguf(model)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # before 5.23, transformers gave such models SDPA, which leaves the cap out without a word
        model.set_attn_implementation("eager")
    check_forward(name, model)
    if quantize:
        layer: Any
        for layer in model.modules():
            # with this flag bitsandbytes rounds differently in forwards without a gradient
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    else:
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    return model.eval(), tokenizer


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load a fast tokenizer. Raises InputError if the model has none."""
    fix = "save a fast tokenizer (tokenizer.json) into the model's folder"
    folder, gguf = _from_pretrained_arguments(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, **gguf
        )
    except Exception as error:  # each tokenizer class of transformers raises its own
        reason = first_line(error).rstrip()
        if reason.endswith(":"):  # a list follows, of what transformers tried
            reason = "there is no file that transformers could make one from"
        raise InputError(f"model {name} has no tokenizer: {reason}; {fix}") from error
    if not tokenizer.is_fast:
        raise InputError(f"model {name} has a slow tokenizer ({type(tokenizer).__name__}); {fix}")
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        raise InputError(f"model {name} has a tokenizer without a vocabulary; {fix}")
    return tokenizer


def load_configs(name: str, trust_remote_code: bool = False) -> Any:
    """Load the `config` and the `generation_config` of a model without its weights.

    They are attributes of the returned object, with the names that a model has for them.
    `generation_config` is None where the model has none.
    """
    try:
        generation = GenerationConfig.from_pretrained(name)
    except OSError:  # a GGUF file has none
        generation = None
    config = _load_config(name, trust_remote_code)
    return SimpleNamespace(config=config, generation_config=generation)


def pick_device(name: str) -> torch.device:
    """Return the device with this name; `auto` is CUDA if available, else MPS, else the CPU.

    Raises InputError if this machine does not have the device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"device '{name}' is unknown to torch; use auto, cuda, mps or cpu"
        ) from None
    has_number = device.type == "cuda" and device.index is not None
    is_absent = has_number and device.index >= torch.cuda.device_count()
    if not available.get(device.type, True) or is_absent:
        raise InputError(f"device '{name}' is not available on this machine; use device=auto")
    return device


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which would overwrite the program's own output."""
    was_enabled = logging.is_progress_bar_enabled()
    gguf_bar = modeling_gguf_pytorch_utils.tqdm
    logging.disable_progress_bar()
    # the GGUF reader creates its own bar, which no setting disables
    modeling_gguf_pytorch_utils.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        if was_enabled:
            logging.enable_progress_bar()


def _from_pretrained_arguments(name: str) -> tuple[str, dict[str, str]]:
    """Return the first argument and the keyword arguments of transformers' `from_pretrained`.

    A GGUF file is given by its folder and its file name. Raises InputError if the file does not
    exist, or if the packages that read it are not installed.
    """
    path = Path(name).expanduser()
    if not name.endswith(".gguf"):
        return str(path) if name.startswith("~") else name, {}
    if not path.is_file():
        raise InputError(f"model {name}: no such file")
    packages = ("gguf", "accelerate")
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        raise InputError(
            f"model {name}: reading a GGUF file needs {' and '.join(absent)}; "
            + install_hint("gguf")
        )
    return str(path.parent), {"gguf_file": path.name}


def _quantization_arguments(
    kind: str | None, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for 4-bit weights (arXiv 2305.14314).

    The quantisation constants are quantised too. Raises InputError if bitsandbytes is not
    installed.
    """
    if kind is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantize={kind} needs bitsandbytes; {install_hint('lora')}")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _forget_gguf(model: Any) -> None:
    """Make a dequantised model an ordinary one.

    Otherwise transformers would save and copy it as a quantised model.
    """
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False


def _load_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    location, gguf = _from_pretrained_arguments(name)
    if not gguf:
        _check_folder(name)
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **gguf)
    except Exception as error:  # not only OSError: a config with invalid values raises others
        if gguf:
            reason = first_line(error).rstrip(".")
            raise InputError(
                f"model {name} cannot be read as GGUF: {reason}; is the file complete?"
            ) from error
        folders = [file.parent.name for file in Path().glob("*/config.json")]
        raise InputError(
            f"model {name} is neither a folder nor a model on the hub: "
            f"{first_line(error).rstrip('.')}; {MODEL_FORMS}{did_you_mean(name, folders)}"
        ) from error


def _check_folder(name: str) -> None:
    """Raise InputError for a folder without a model, and for a path that does not exist."""
    path = Path(name).expanduser()
    for run in (path, Path("runs", name)):
        if (run / "config.yaml").is_file() and (run / "model" / "config.json").is_file():
            raise InputError(f"model {name} is a run; give its model: {run / 'model'}")
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"model {name}: the folder has no config.json; give a folder written by save_pretrained"
        )
    if not path.is_dir() and looks_like_path:
        raise InputError(f"model {name}: no such folder; {MODEL_FORMS}")
    if path.is_file():
        raise InputError(f"model {name} is a file; {MODEL_FORMS}")


def _check_causal(name: str, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Raise InputError unless the checkpoint is that of a causal language model.

    The check reads the checkpoint's own `architectures`. transformers has causal classes for
    encoders such as BERT, too, but the usual checkpoints of BERT are of another class.
    """
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    architectures = config.architectures or [
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")
    ]
    if not _CAUSAL_CLASSES.intersection(architectures):
        kind = f"a model of type {config.model_type}"
        if config.architectures:
            kind = config.architectures[0]
        raise InputError(
            f"model {name} is {kind}, not a causal language model; give a decoder (…ForCausalLM)"
        )


def _causal_classes() -> set[str]:
    classes: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        classes.update([names] if isinstance(names, str) else names)
    return classes


_CAUSAL_CLASSES = _causal_classes()
