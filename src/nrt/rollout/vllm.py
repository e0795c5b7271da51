"""vLLM, in this process: for models and traces that the loop over transformers is too slow for. `pip install vllm`, not an extra.

Every sampling parameter is given, so no generation_config leaks in; ids come back as they were sampled, no text in between.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nrt.environment import launched, machine_memory
from nrt.errors import InputError, RunError
from nrt.rollout.base import Request, hashed
from nrt.types import Row, Sample

NEVER = -100.0
"""Logit bias of a token that is not to be drawn: the lowest that vLLM takes, e^-100 of its probability."""
GAPS = 0.04
"""Share of a GPU's memory that is left to the allocators' gaps."""


class VLLMSampler:
    """A model folder or hub name in vLLM. All of a prompt's samples share its keys and values (prefix caching).

    context    the longest sequence in tokens; None: the model's own
    rows       how many are decoded together
    memory     share of a GPU's memory that vLLM takes, weights included (None: .9; `share_beside` a trainer); without a GPU, share of
               the machine's for keys and values alone (None: .1)
    dummy      the folder has a configuration only: weights are what `load_weights` brings
    sleep      what `rest` gives back where the platform can (a GPU, not a CPU): 1 keys and values, with the weights moved to the
               machine's memory; 2 the weights too, which the next `load_weights` brings again; 0 nothing
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        context: int | None = None,
        rows: int = 256,
        memory: float | None = None,
        dummy: bool = False,
        sleep: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        vllm, on_gpu = _vllm(), torch.cuda.is_available()
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        self._sleep = sleep if current_platform.is_sleep_mode_available() else 0
        self._asleep: set[str] = set()  # weights, kv_cache
        self._loaded, self.version = not dummy, None  # of the weights, if whoever brought them said
        self.llm = vllm.LLM(
            model, dtype=dtype, max_model_len=context, max_num_seqs=rows, skip_tokenizer_init=True, generation_config="vllm",
            enable_prefix_caching=True, seed=0, disable_log_stats=True, enforce_eager=not on_gpu, logprobs_mode="processed_logprobs",
            load_format="dummy" if dummy else "auto", enable_sleep_mode=bool(self._sleep), trust_remote_code=trust_remote_code,
            distributed_executor_backend="external_launcher" if launched()[1] > 1 else None,  # one engine in each of torchrun's processes
            **({"gpu_memory_utilization": memory or 0.9} if on_gpu else {"kv_cache_memory_bytes": int((memory or 0.1) * machine_memory())}),
        )  # fmt: skip
        self.context: int = self.llm.llm_engine.model_config.max_model_len

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """In memory, then the prefix cache is emptied: its keys and values are the old weights'."""
        lost = self._sleep == 2 and "weights" in self._asleep
        self._wake("weights")
        if lost or version is None or version != self.version:
            self._loaded, self.version = False, None  # until all are there
            self.llm.collective_rpc(_reload, args=(list(weights),))
            self._loaded, self.version = True, version
        self.llm.reset_prefix_cache()

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Which noise a seed stands for is vLLM's own: not the ids that `HFSampler` draws.

        Raises RunError without weights, InputError for a prompt that leaves no room for `cap` tokens.
        """
        if not self._loaded or "weights" in self._asleep:
            raise RunError("vLLM has no weights: load_weights comes first")
        self._wake("kv_cache")
        if (longest := max((len(request.prompts[b]) for b in request.places), default=0)) + request.cap > self.context:
            raise InputError(
                f"a prompt of {longest} tokens and {request.cap} new ones do not fit into vLLM's context of {self.context}; "
                "raise vllm.context, or lower max_prompt_tokens"
            )
        prompts: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in (request.prompts[b] for b in request.places)]
        outputs = self.llm.generate(prompts, [params_of(request, place) for place in request.places], use_tqdm=False)
        groups = [[self._sample(one) for one in sorted(output.outputs, key=lambda one: one.index)] for output in outputs]
        return [group * request.n for group in groups] if request.greedy else groups

    def rest(self) -> None:
        """Gives back what `sleep` says."""
        if self._sleep and not self._asleep:
            self.llm.sleep(level=self._sleep)
            self._asleep = {"weights", "kv_cache"}

    def close(self) -> None:
        """Ends the engine. Under torchrun vLLM then ends torch.distributed too, the trainer's part of it included."""
        self.llm.llm_engine.engine_core.shutdown()

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

    def _wake(self, part: str) -> None:
        """Weights first, for the push, and keys and values when they are needed: the trainer may hold its whole model in between."""
        if part in self._asleep:
            torch.cuda.empty_cache()  # what torch's allocator holds for the trainer without need
            self.llm.wake_up(tags=[part])
            self._asleep.remove(part)

    def _sample(self, output: Any) -> Sample:
        return Sample(tuple(output.token_ids), tuple(output.logprobs.logprobs), self.version)


def _vllm() -> Any:
    """Raises InputError where vLLM is not installed."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # before the import: the engine shall live in this process
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # whose threads are not vLLM's to pin
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns at each push of tables that no push has
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"this needs vLLM ({error}); install it beside nrt, or take hf instead of vllm") from None
    return vllm


def share_beside(used: int, total: int, *, sleeps: bool) -> float:
    """Share of a GPU's `total` bytes for vLLM, where a trainer keeps `used`: all the rest if it sleeps during updates, else half of it.

    >>> share_beside(50, 100, sleeps=True), share_beside(50, 100, sleeps=False)
    (0.46, 0.23)
    """
    left = (1 - GAPS) * total - used
    return math.floor(100 * (left if sleeps else left / 2) / total) / 100


def params_of(request: Request, place: int) -> Any:
    """`ignore_eos` leaves ending to the request's own stop ids. Of greedy samples vLLM gives one, for all are the same."""
    greedy = request.greedy
    return _vllm().SamplingParams(
        n=1 if greedy else request.n, temperature=0.0 if greedy else request.temperature, top_p=request.top_p, top_k=0, min_p=0.0,
        repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, max_tokens=request.cap, min_tokens=0,
        stop_token_ids=sorted(request.stop_ids), ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
        seed=_seed(request, place), logit_bias=dict.fromkeys(request.banned, NEVER) or None,
    )  # fmt: skip


def _seed(request: Request, place: int) -> int:
    """Of a prompt. vLLM gives its samples this number, the next and so on: without a hash, neighbours would share their noise."""
    return hashed(f"{request.seeds[place]}")


def _reload(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    """Runs in vLLM's worker. A head tied to the embeddings has no weights of its own to load: vLLM would leave the packed copy that
    it has on a CPU as it was."""
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod  # pyright: ignore[reportMissingImports]

    runner = worker.model_runner
    runner.reload_weights(weights_iterator=iter(weights))
    for layer in runner.get_model().modules():
        if isinstance(getattr(layer, "quant_method", None), UnquantizedEmbeddingMethod):
            layer.quant_method.process_weights_after_loading(layer)
