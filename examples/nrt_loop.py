"""Native Reasoning Training in one flat file: read this first. `python examples/nrt_loop.py`, CPU, a few minutes.

The model is the miniature of nrt.lab: it has read worked answers, but seldom writes one. It is trained on question–answer
pairs alone. Everything of the algorithm stands below; what the package adds is generality (chat templates, tokenizers,
any model, padding-free scoring, resuming, logging), and a test holds the gradient of `nrt_loss` here to the package's.

Left out on purpose: several updates a rollout (so the PPO ratio is 1 and needs no clip), a sampler with a cache, evaluation.

Shapes: B prompts, K traces a prompt, T answer tokens, L padded tokens, V vocabulary. Log-probabilities are in nats.
"""

import argparse
import json
import random
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt.lab.base import BaseSettings, build_base, cache_folder
from nrt.lab.dataset import write_pairs

# The paper's hyperparameters (Table 6), in the miniature's size.
B, K, MAX_TRACE, LR, FORMAT_COEF = 16, 8, 20, 5e-4, 0.3
N = 80  # one constant denominator (Dr.GRPO): most tokens a row can have


# ---------------------------------------------------------------------------------------------------- the model's side


def token_logps(model, rows, traces, start):
    """log π(token | tokens before it) of each row but for its first token, a list of [L − 1] tensors.

    START opens a trace and is no action in it: at the places of `traces` (first, last of each row) it has probability 0.
    """
    L = max(map(len, rows))
    ids_RL = torch.tensor(
        [row + [0] * (L - len(row)) for row in rows]
    )  # padding on the right: nothing real can see it
    logits_RLV = model(ids_RL).logits[:, :-1].float()
    banned_RL = torch.zeros(logits_RLV.shape[:2], dtype=torch.bool)
    for r, (first, last) in enumerate(traces):
        banned_RL[r, first : last + 1] = True
    never_RLV = banned_RL[..., None] & (torch.arange(logits_RLV.shape[-1]) == start)
    logp_RLV = logits_RLV.masked_fill(never_RLV, -torch.inf).log_softmax(-1)
    logp_RL = logp_RLV.gather(-1, ids_RL[:, 1:, None])[..., 0]
    return [logp[: len(row) - 1] for logp, row in zip(logp_RL, rows, strict=True)]


@torch.no_grad()
def sample_traces(model, prompts, stop_ids, start):
    """One trace a prompt at temperature 1, as sampled: the last id is a stop id, or the cap was reached."""
    traces = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(MAX_TRACE):
        rows = [prompts[r] + traces[r] for r in running]
        L = max(map(len, rows))
        ids_RL = torch.tensor([row + [0] * (L - len(row)) for row in rows])
        last_R = torch.tensor([len(row) - 1 for row in rows])
        logits_RV = model(ids_RL).logits[torch.arange(len(rows)), last_R]
        logits_RV[:, start] = -torch.inf  # START opens a trace and does not stand in it
        for r, token in zip(
            running, torch.multinomial(logits_RV.softmax(-1), 1)[:, 0].tolist(), strict=True
        ):
            traces[r].append(token)
        running = [r for r in running if traces[r][-1] not in stop_ids]
        if not running:
            break
    return traces


# ------------------------------------------------------------------------------------------------------- the objective


def reward(logp_KT, base_T):
    """NRT-WS(−log p), Table 2: R = (1/T) Σ w_j c_j with w_j = −log c_base,j: hard tokens count most."""
    return (logp_KT.exp() * -base_T).mean(-1)


def advantages(R_K, R_base):
    """Clip against the null trace (Eq. 9), normalise in the group (Eq. 10)."""
    gain_K = (R_K - R_base).clamp(min=0)
    if gain_K.max() - gain_K.min() <= 1e-5 * R_K.abs().max():  # rounding must not make advantages
        return torch.zeros_like(gain_K)
    return (gain_K - gain_K.mean()) / gain_K.std()


def nrt_loss(model, batch, start, end, stop_ids):
    """The loss of Algorithm 1 on a batch of (prompt ids, answer ids, K sampled traces), and the mean gain over the null trace.

    One forward pass serves reward, advantage and gradient: with one update a rollout π_θ is π_old.
    """
    rows, parts = [], []
    for prompt, answer, samples in batch:
        for sample in [*samples, None]:  # None: the null trace
            finished = sample is not None and sample[-1:] == [end]
            stopped = sample is not None and sample[-1:] != [] and sample[-1] in stop_ids
            trace = [] if sample is None else sample[:-1] if stopped else sample
            rows.append(
                [*prompt, start, *trace, end, *answer]
            )  # END takes the place of another stop token, or follows the cap
            parts.append((len(prompt), len(trace), finished))
    # position x predicts the first trace token, position x + z predicts END
    logps = token_logps(model, rows, [(x, x + z) for x, z, _ in parts], start)
    loss, gains = torch.zeros(()), []
    for b, (_, answer, samples) in enumerate(batch):
        group, base = logps[b * (K + 1) : (b + 1) * (K + 1) - 1], logps[(b + 1) * (K + 1) - 1]
        logp_KT = torch.stack([logp[-len(answer) :] for logp in group])
        base_T = base[-len(answer) :].detach()
        R_K, R_base = reward(logp_KT.detach(), base_T), reward(base_T[None], base_T)[0]
        A_K = advantages(R_K, R_base)
        gains.append((R_K - R_base).mean().item())
        for k in range(len(samples)):
            x, z, finished = parts[b * (K + 1) + k]
            logp = group[
                k
            ]  # position x − 1 predicts START, then z trace tokens, then END, then the answer
            trace_logp = logp[
                x : x + z + finished
            ]  # an END that the model wrote is an action; an appended one is not
            markers = logp[x - 1] + logp[x + z]
            loss = loss - A_K[k] * trace_logp.sum()  # policy gradient on the trace
            loss = (
                loss - logp_KT[k].sum()
            )  # answer term, every token with weight 1 (profile "recommended")
            loss = loss - FORMAT_COEF * markers  # Eq. 11
    return loss / (len(batch) * K * N), sum(gains) / len(gains)


# ------------------------------------------------------------------------------------------------------------ the loop


def load_miniature(seed):
    """Base model, tokenizer with the two markers (rows copied from the line break), and 4,000 pairs as ids."""
    folder = build_base(
        BaseSettings(seed=seed),
        progress=lambda step, steps, loss: print(f"\rbase model {step}/{steps}", end=""),
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|think_start|>", "<|think_end|>"]}
    )
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    newline = tokenizer.convert_tokens_to_ids("\n")
    start, end = tokenizer.convert_tokens_to_ids(["<|think_start|>", "<|think_end|>"])
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight  # tied: the head's rows too
        embedding[start] = embedding[end] = embedding[newline]
    path = cache_folder() / "lab" / "example.jsonl"
    write_pairs(path, "train", 4000, seed=seed)
    pairs = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.encode(
            f"{tokenizer.bos_token} {row['question']}", add_special_tokens=False
        )
        answer = tokenizer.encode(row["answer"], add_special_tokens=False) + [
            tokenizer.eos_token_id
        ]
        pairs.append((prompt, answer))
    return model.eval(), tokenizer, start, end, pairs


def main(steps, seed):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, tokenizer, start, end, pairs = load_miniature(seed)
    stop_ids = {end, tokenizer.eos_token_id}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    rng, began = random.Random(seed), time.time()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, step / 5)  # a short warm-up
        chosen = rng.sample(pairs, B)
        prompts = [[*prompt, start] for prompt, _ in chosen for _ in range(K)]
        samples = sample_traces(model, prompts, stop_ids, start)
        batch = [(*pair, samples[b * K : (b + 1) * K]) for b, pair in enumerate(chosen)]
        loss, gain = nrt_loss(model, batch, start, end, stop_ids)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step == 1:
            print(
                f"step {step}  loss {loss.item():.4f}  gain over the null trace {gain:+.4f}  {time.time() - began:.0f} s"
            )
            print(
                f"    {tokenizer.decode(chosen[0][0][1:-1])}\n    → {tokenizer.decode(samples[0])}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Native Reasoning Training in one flat file")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
