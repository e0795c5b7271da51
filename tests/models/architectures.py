"""Treatment of every architecture that transformers has a causal class for.

Each is built tiny, with random weights, then scored and sampled by nrt.
`python -m tests.models.architectures > tests/models/architectures.tsv` writes the table again;
`test_architectures.py` compares nrt with it.
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

SETTINGS: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "initializer_range": 0.3, "head_dim": 8, "sliding_window": 6, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
"""Settings of a tiny model; its window is shorter than the rows.

`build` omits settings that a config does not have.
"""

LATENT_SETTINGS: dict[str, Any] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
"""Additional settings of models with latent attention; their head_dim is derived."""

TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
MAX_PARAMETERS = 3_000_000
MAX_SECONDS = 40
ROWS = random_rows(1, [(9, 12), (9, 7), (4, 12), (14, 5)])
PROMPTS = [(3, 4, 5), (6, 7, 8, 9, 10, 11, 12, 13)]


@dataclass(frozen=True)
class Outcome:
    """How nrt trains a model type.

    `treatment` is "shared" (prompts are shared), "shared, sampled plainly", "padded" or "refused";
    or "not built", if this module cannot build a tiny model. `gap` is the largest difference, in
    nats, between log-probabilities that must agree: chosen scorer and padded, padded and single
    rows, sampler and padded.
    """

    kind: str
    treatment: str
    gap: float = 0.0
    reason: str = ""


def build(kind: str) -> Any:
    """Return a tiny model of the type; errors of its config or class are not caught."""
    config_class = type(AutoConfig.for_model(kind))
    fields = set(inspect.signature(config_class.__init__).parameters)
    fields |= set(getattr(config_class, "__dataclass_fields__", {}))
    fields |= set(getattr(config_class, "attribute_map", {}))
    latent = "kv_lora_rank" in fields
    wanted = {**SETTINGS, **LATENT_SETTINGS} if latent else SETTINGS
    settings = {name: value for name, value in wanted.items() if name in fields}
    if latent:
        settings.pop("head_dim", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **settings, **TOKENS)
        return AutoModelForCausalLM.from_config(config).float().eval()


def try_model_type(kind: str) -> Outcome:
    """Score and sample a tiny model of the type; only refusals of nrt are caught."""
    try:
        model = build(kind)
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return Outcome(kind, "not built", reason=lines[0][:80])
    if sum(parameter.numel() for parameter in model.parameters()) > MAX_PARAMETERS:
        reason = "its parts cannot be made small by these settings"
        return Outcome(kind, "not built", reason=reason)
    try:
        choice = choose_scorer(model, PAD, rows=ROWS)
        fault = sharing_fault(model, PAD, ROWS, choice.tolerance)
    except InputError as error:
        return Outcome(kind, "refused", reason=str(error)[:120])
    sampler = HFSampler(model, PAD, share=not fault)
    request = Request(PROMPTS, n=2, stop_ids=frozenset({EOS}), cap=12, seed=0)
    sampled_rows, sampled_logps = [], []
    for prompt, group in zip(PROMPTS, sampler.sample(request), strict=True):
        for sample in group:
            sampled_rows.append(row(prompt, sample.ids))
            sampled_logps += sample.logps
    padded = PaddedScorer(PAD)
    with torch.no_grad():
        batch_N = padded(model, ROWS).logp_N
        single_N = torch.cat([padded(model, [single]).logp_N for single in ROWS])
        gaps = [
            choice.scorer(model, ROWS).logp_N - batch_N,
            single_N - batch_N,
            padded(model, sampled_rows).logp_N - torch.tensor(sampled_logps),
        ]
    treatment = "padded"
    if isinstance(choice.scorer, PackedScorer):
        treatment = "shared, sampled plainly" if fault else "shared"
    return Outcome(kind, treatment, max(float(gap.abs().max()) for gap in gaps))


def main() -> None:
    """Print the table, without model types that take longer than MAX_SECONDS."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def raise_timeout(*_: Any) -> None:
        raise TimeoutError

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    signal.signal(signal.SIGALRM, raise_timeout)
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        signal.alarm(MAX_SECONDS)
        try:
            outcome = try_model_type(kind)
            print(f"{kind}\t{outcome.treatment}", flush=True)
            report(f"{kind}\t{outcome.treatment}\t{outcome.gap:.1e}\t{outcome.reason}")
        except TimeoutError:
            report(f"{kind}: more than {MAX_SECONDS} s")
        except Exception as error:
            report(f"{kind}: FAULT {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)


if __name__ == "__main__":
    main()
