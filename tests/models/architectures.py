"""Every architecture that transformers has a causal class for, tiny and with random weights: how nrt scores and samples it.

`python -m tests.models.architectures > tests/models/architectures.tsv` makes the table anew; `test_architectures.py` holds nrt to it.
"""

from __future__ import annotations

import inspect
import signal
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nrt.errors import InputError
from nrt.rollout import HFSampler
from nrt.rollout.base import Request
from nrt.rollout.probe import sharing_fault
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer
from tests.tiny import BOS, EOS, PAD, VOCAB, random_rows, row

WANTED: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "head_dim": 8, "sliding_window": 6,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
"""Settings of a tiny model. `build` omits settings that a config does not have. The window is shorter than the rows."""
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
"""Of models with latent attention, over these; their head_dim is their own."""
TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
MOST_PARAMETERS = 3_000_000
ROWS = random_rows(1, [(9, 12), (9, 7), (4, 12), (14, 5)])
PROMPTS = [(3, 4, 5), (6, 7, 8, 9, 10, 11, 12, 13)]


@dataclass(frozen=True)
class Outcome:
    """How a model type is trained: "shared" prompts, "shared, sampled plainly", "padded", "refused"; or "not built" here.

    `gap` is the largest difference in nats between the numbers that must agree: chosen scorer against padded, padded against rows alone,
    sampler against padded.
    """

    kind: str
    how: str
    gap: float = 0.0
    why: str = ""


def build(kind: str) -> Any:
    """A tiny model of the type. Raises whatever its config or class raises for such settings."""
    config_class = type(AutoConfig.for_model(kind))
    fields = set(inspect.signature(config_class.__init__).parameters)
    fields |= set(getattr(config_class, "__dataclass_fields__", {})) | set(getattr(config_class, "attribute_map", {}))
    wanted = {**WANTED, **LATENT} if "kv_lora_rank" in fields else WANTED
    settings = {name: value for name, value in wanted.items() if name in fields}
    if "kv_lora_rank" in fields:
        settings.pop("head_dim", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings, **TOKENS)).float().eval()


def outcome(kind: str) -> Outcome:
    """Score and sample a tiny model of the type; exceptions other than a refusal are not caught."""
    try:
        model = build(kind)
    except Exception as error:
        return Outcome(kind, "not built", why=(str(error).splitlines() or [type(error).__name__])[0][:80])
    if sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMETERS:
        return Outcome(kind, "not built", why="its parts cannot be made small by these settings")
    try:
        choice = choose_scorer(model, PAD, rows=ROWS)
        fault = sharing_fault(model, PAD, ROWS, choice.tolerance)
    except InputError as error:
        return Outcome(kind, "refused", why=str(error)[:120])
    samples = HFSampler(model, PAD, share=not fault).sample(Request(PROMPTS, n=2, stop_ids=frozenset({EOS}), cap=12, seed=0))
    rows = [row(prompt, sample.ids) for prompt, group in zip(PROMPTS, samples, strict=True) for sample in group]
    reported = torch.tensor([logp for group in samples for sample in group for logp in sample.logps])
    padded = PaddedScorer(PAD)
    with torch.no_grad():
        together = padded(model, ROWS).logp_N
        gaps = [
            choice.scorer(model, ROWS).logp_N - together,
            torch.cat([padded(model, [one]).logp_N for one in ROWS]) - together,
            padded(model, rows).logp_N - reported,
        ]
    how = "padded"
    if isinstance(choice.scorer, PackedScorer):
        how = "shared, sampled plainly" if fault else "shared"
    return Outcome(kind, how, max(float(gap.abs().max()) for gap in gaps))


def main() -> None:
    """Prints the table; a model type that takes a minute is left out."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def too_long(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        signal.alarm(40)
        try:
            found = outcome(kind)
            print(f"{found.kind}\t{found.how}", flush=True)
            print(f"{found.kind}\t{found.how}\t{found.gap:.1e}\t{found.why}", file=sys.stderr, flush=True)
        except TimeoutError:
            print(f"{kind}: more than 40 s", file=sys.stderr, flush=True)
        except Exception as error:
            print(f"{kind}: FAULT {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        finally:
            signal.alarm(0)


if __name__ == "__main__":
    main()
