"""Sampler with vLLM in this process, for models and traces that are too slow with transformers.

`pip install vllm` installs it; it is not an extra of nrt. Each request sets every sampling
parameter, so no generation_config can change samples. Ids are returned as they were sampled,
without conversion to text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nrt.errors import InputError, RunError
from nrt.rollout.base import Request, hashed
from nrt.system.environment import machine_memory, rank_and_world_size
from nrt.types import Row, Sample

BANNED_BIAS = -100.0
"""Logit bias of a banned token: the lowest that vLLM accepts, e^-100 of its probability."""


class VLLMSampler:
    """Samples with a model folder or hub name in vLLM.

    All samples of a prompt share its keys and values (prefix caching).
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
        """Start the engine.

        Args:
            model: folder or hub name.
            context: maximum tokens of a sequence. None: the model's own.
            rows: maximum number of sequences that are decoded together.
            memory: on a GPU the share of its memory that vLLM takes, weights included (None: 0.9;
                beside a trainer see `nrt.rollout.vllm_memory`). Without a GPU the share of the
                machine's memory for keys and values only (None: 0.1).
            dummy: the folder has only a configuration, and `load_weights` provides the weights.
            sleep: what `sleep` releases if the platform can (a GPU can, a CPU cannot). 1: keys and
                values, and it moves the weights to the machine's memory. 2: the weights too, which
                the next `load_weights` provides again. 0: nothing.

        Raises InputError if vLLM is not installed.
        """
        vllm = _import_vllm()
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        self._sleep_level = sleep if current_platform.is_sleep_mode_available() else 0
        self._asleep: set[str] = set()  # of "weights" and "kv_cache"
        self._has_weights = not dummy
        self.version: int | None = None  # of the weights, if `load_weights` received it
        _, processes = rank_and_world_size()
        self.llm = vllm.LLM(
            model,
            dtype=dtype,
            max_model_len=context,
            max_num_seqs=rows,
            skip_tokenizer_init=True,
            generation_config="vllm",
            enable_prefix_caching=True,
            seed=0,
            disable_log_stats=True,
            enforce_eager=not torch.cuda.is_available(),
            logprobs_mode="processed_logprobs",
            load_format="dummy" if dummy else "auto",
            enable_sleep_mode=bool(self._sleep_level),
            trust_remote_code=trust_remote_code,
            # Under torchrun each process has its own engine.
            distributed_executor_backend="external_launcher" if processes > 1 else None,
            **_memory_settings(memory),
        )
        self.context: int = self.llm.llm_engine.model_config.max_model_len

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Load the weights, and empty the prefix cache, which was computed with the old ones."""
        lost = self._sleep_level == 2 and "weights" in self._asleep
        self._wake("weights")
        if lost or version is None or version != self.version:
            self._has_weights, self.version = False, None  # until all are loaded
            self.llm.collective_rpc(_reload, args=(weights,))
            self._has_weights, self.version = True, version
        self.llm.reset_prefix_cache()

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. vLLM draws with its own noise: other ids than those of `HFSampler`.

        Raises RunError without weights, and InputError for a prompt that leaves no room for `cap`
        tokens.
        """
        if not self._has_weights or "weights" in self._asleep:
            raise RunError("vLLM has no weights: load_weights comes first")
        self._wake("kv_cache")
        ids = [request.prompts[place] for place in request.places]
        longest = max((len(prompt) for prompt in ids), default=0)
        if longest + request.cap > self.context:
            raise InputError(
                f"a prompt of {longest} tokens and {request.cap} new ones do not fit into vLLM's "
                f"context of {self.context}; raise vllm.context, or lower max_prompt_tokens"
            )
        prompts: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in ids]
        params = [sampling_params(request, place) for place in request.places]
        groups = []
        for output in self.llm.generate(prompts, params, use_tqdm=False):
            completions = sorted(output.outputs, key=lambda completion: completion.index)
            groups.append([self._to_sample(completion) for completion in completions])
        if request.greedy:  # see `sampling_params`
            return [group * request.n for group in groups]
        return groups

    def sleep(self) -> None:
        """Release memory as the argument `sleep` says."""
        if self._sleep_level and "weights" not in self._asleep:
            self._wake("kv_cache")  # asleep if no request followed a push; vLLM sleeps as a whole
            self.llm.sleep(level=self._sleep_level)
            self._asleep = {"weights", "kv_cache"}

    def close(self) -> None:
        """Stop the engine.

        Under torchrun vLLM then also destroys torch.distributed, including the trainer's groups.
        """
        self.llm.llm_engine.engine_core.shutdown()

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Return the log-probability of each tail token, in nats."""
        prompts: list[Any] = [{"prompt_token_ids": list(row.ids)} for row in rows]
        params = _import_vllm().SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False
        )
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        scores = []
        for row, output in zip(rows, outputs, strict=True):
            logps = []
            for i in range(len(row.prompt_ids), len(row.ids)):
                logps.append(output.prompt_logprobs[i][row.ids[i]].logprob)
            scores.append(logps)
        return scores

    def _wake(self, part: str) -> None:
        """Wake the weights or the KV cache, if it sleeps.

        Weights wake for a push, the cache for the first request after it: in between, the trainer
        may have gathered its complete model.
        """
        if part in self._asleep:
            torch.cuda.empty_cache()  # unused memory that torch's allocator keeps for the trainer
            self.llm.wake_up(tags=[part])
            self._asleep.remove(part)

    def _to_sample(self, completion: Any) -> Sample:
        return Sample(
            tuple(completion.token_ids), tuple(completion.logprobs.logprobs), self.version
        )


def sampling_params(request: Request, place: int) -> Any:
    """Return vLLM's parameters for the prompt at index `place`.

    With `ignore_eos` only the request's stop ids end a sample. With `greedy`, vLLM samples once,
    since all samples would be equal.
    """
    return _import_vllm().SamplingParams(
        n=1 if request.greedy else request.n,
        temperature=0.0 if request.greedy else request.temperature,
        top_p=request.top_p,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        max_tokens=request.cap,
        min_tokens=0,
        stop_token_ids=sorted(request.stop_ids),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        # vLLM gives a prompt's samples the seeds s, s + 1, …: without a hash, prompts with
        # neighbouring seeds would share noise.
        seed=hashed(f"{request.seeds[place]}"),
        logit_bias=dict.fromkeys(request.banned, BANNED_BIAS) or None,
    )


def _memory_settings(memory: float | None) -> dict[str, Any]:
    """Return vLLM's setting for a share of the memory; see `VLLMSampler`."""
    if torch.cuda.is_available():
        return {"gpu_memory_utilization": memory or 0.9}
    return {"kv_cache_memory_bytes": int((memory or 0.1) * machine_memory())}


def check_installed() -> None:
    """Raise InputError if vLLM is not installed, at once: to import it takes seconds."""
    if find_spec("vllm") is None:
        raise _not_installed("no such package")


def _not_installed(reason: object) -> InputError:
    return InputError(
        f"sampling with vllm needs the package vllm ({reason}); pip install vllm (docs/vllm.md), "
        "or choose hf instead of vllm"
    )


def _import_vllm() -> Any:
    """Import vLLM with its settings; raises InputError if it is not installed."""
    # Read at the import. The engine must be in this process, whose threads vLLM must not pin.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # At each push vLLM warns about tables that no push contains.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _not_installed(error) from None
    return vllm


def _reload(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load the weights in vLLM's worker, which is in this process.

    The iterator yields one tensor at a time. The engine may build each on demand, such as with
    merged adapters, and all together may be as large as the model.

    A head tied to the embeddings has no weights to load, so on a CPU vLLM would keep the old packed
    copy of it. The loop at the end packs it again.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
        UnquantizedEmbeddingMethod,
    )

    runner = worker.model_runner
    runner.reload_weights(weights_iterator=iter(weights))
    for layer in runner.get_model().modules():
        if isinstance(getattr(layer, "quant_method", None), UnquantizedEmbeddingMethod):
            layer.quant_method.process_weights_after_loading(layer)
