"""vLLM as a peer of `benchmarks.rollout`, in an interpreter of its own that has no nrt: `PYTHON benchmarks/vllm_peer.py FOLDER DTYPE`.

The first line of stdin is a JSON object: prompts (ids), n and tokens (new ones a sample). Answers with a line of versions; then with the
seconds of one sampling for each further line, its cache of prompts emptied before, as it is after each update.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
PACKAGES = ("vllm-cpu", "torch", "transformers")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    os.environ.update(ENVIRONMENT)
    folder, dtype = sys.argv[1:]
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    task = json.loads(sys.stdin.readline())
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    longest = max(map(len, task["prompts"])) + task["tokens"]
    llm = LLM(
        folder,
        dtype=dtype,
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=longest,
        max_num_seqs=512,
        seed=0,
    )
    params = SamplingParams(
        n=task["n"], temperature=1.0, max_tokens=task["tokens"], ignore_eos=True, detokenize=False
    )
    print(json.dumps({package: version(package) for package in PACKAGES}), file=answers, flush=True)
    for _ in sys.stdin:
        llm.reset_prefix_cache()
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        took = time.perf_counter() - began
        assert all(
            len(sample.token_ids) == task["tokens"]
            for output in outputs
            for sample in output.outputs
        )
        print(took, file=answers, flush=True)


if __name__ == "__main__":
    main()
