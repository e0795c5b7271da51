"""`python -m benchmarks.smollm2_plain`: the untrained SmolLM2-135M on the test questions of recipe smollm2, as plain text.

Two worked examples and the question come first, without any marker. The model goes on greedily, for at most 64 tokens or until it ends
its turn; the number after the first `The answer is` counts.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict

import torch

from nrt.analysis.stats import wilson
from nrt.data.checkers import last_number
from nrt.lab.pretrained import smollm2_folder
from nrt.lab.settings import PRETRAINED, arithmetic_settings
from nrt.models import load_model
from nrt.rollout import HFSampler, Request


def main() -> None:
    model, tokenizer = load_model(
        str(smollm2_folder(plain=True)), dtype=torch.float32, device="cpu"
    )
    settings = dict(
        text.split("=", 1) for text in arithmetic_settings(PRETRAINED["smollm2"], seed=0)
    )
    with open(settings["data.valid"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    prompts = []
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=True, return_dict=False)
        prompts.append(tuple(ids))
    stop_ids = frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id})
    request = Request(prompts, n=1, stop_ids=stop_ids, cap=64, seed=0, greedy=True)
    verdicts = defaultdict(list)
    for row, (sample,) in zip(rows, HFSampler(model, pad_id=0).sample(request), strict=True):
        text = tokenizer.decode(sample.ids).split("Question:")[0]
        numbers = re.findall(r"The answer is (\d+)", text)
        reference = row["messages"][-1]["content"]
        verdicts[row["source"]].append(bool(numbers) and last_number(numbers[0], reference))
    for source, right in verdicts.items():
        print(f"{source}: {sum(right)} of {len(right)} right, {wilson(sum(right), len(right))}")


if __name__ == "__main__":
    main()
