"""vLLM, in this process: for models and traces that the loop over transformers is too slow for. `pip install vllm`, not an extra.

Every sampling parameter is given, so no generation_config leaks in; ids come back as they were sampled, no text in between.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nrt.errors import InputError
from nrt.rollout.base import Request
from nrt.types import Row, Sample


class VLLMSampler:
    """A model folder or hub name in vLLM.

    context    the longest sequence in tokens; None: the model's own
    rows       how many are decoded together
    memory     share of the device's memory that vLLM takes, weights included; None: .9 of a GPU's, .25 of a machine's
    """

    def __init__(
        self, model: str, *, dtype: str = "auto", context: int | None = None, rows: int = 256, memory: float | None = None
    ) -> None:
        on_gpu = torch.cuda.is_available()
        self.llm = _vllm().LLM(
            model, dtype=dtype, max_model_len=context, max_num_seqs=rows, skip_tokenizer_init=True, generation_config="vllm",
            enable_prefix_caching=True, seed=0, disable_log_stats=True, enforce_eager=not on_gpu,
            gpu_memory_utilization=memory or (0.9 if on_gpu else 0.25),
        )  # fmt: skip
        self.context: int = self.llm.llm_engine.model_config.max_model_len

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """In memory, then the prefix cache is emptied: its keys and values are the old weights'."""
        self.llm.collective_rpc(_reload, args=(list(weights),))
        self.llm.reset_prefix_cache()

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Which noise a seed stands for is vLLM's own: not the ids that `HFSampler` draws."""
        prompts: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in (request.prompts[b] for b in request.places)]
        outputs = self.llm.generate(prompts, [_params(request, place) for place in request.places], use_tqdm=False)
        groups = [[_sample(one) for one in sorted(output.outputs, key=lambda one: one.index)] for output in outputs]
        return [group * request.n for group in groups] if request.greedy else groups

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probability of each tail token, nats."""
        prompts: list[Any] = [{"prompt_token_ids": list(row.ids)} for row in rows]
        params = _vllm().SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        found = []
        for row, output in zip(rows, self.llm.generate(prompts, params, use_tqdm=False), strict=True):
            first = len(row.prompt_ids)
            places = range(first, len(row.ids))
            found.append([output.prompt_logprobs[place][row.ids[place]].logprob for place in places])
        return found


def _vllm() -> Any:
    """Raises InputError where vLLM is not installed."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # before the import: the engine shall live in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"this needs vLLM ({error}); install it beside nrt, or take the backend hf") from None
    return vllm


def _params(request: Request, place: int) -> Any:
    """`ignore_eos` leaves ending to the request's own stop ids. Of greedy samples vLLM gives one, for all are the same."""
    greedy = request.greedy
    return _vllm().SamplingParams(
        n=1 if greedy else request.n, temperature=0.0 if greedy else request.temperature, top_p=request.top_p, top_k=0, min_p=0.0,
        repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, max_tokens=request.cap, min_tokens=0,
        stop_token_ids=sorted(request.stop_ids), ignore_eos=True, logprobs=0, detokenize=False, seed=_seed(request, place),
    )  # fmt: skip


def _seed(request: Request, place: int) -> int:
    """vLLM takes 63 bits a prompt; one seed for all must not give all prompts the same noise."""
    if not isinstance(request.seed, int):
        return request.seed[place]
    return int.from_bytes(hashlib.sha256(f"{request.seed}/{place}".encode()).digest()[:7])


def _sample(output: Any) -> Sample:
    ids = tuple(output.token_ids)
    return Sample(ids, tuple(logps[token].logprob for token, logps in zip(ids, output.logprobs, strict=True)))


def _reload(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    worker.model_runner.reload_weights(weights_iterator=iter(weights))
