"""Table of metrics: the meaning of each name in metrics.jsonl.

`python -m nrt.run.metrics` prints docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from nrt.errors import unknown_name


@dataclass(frozen=True, slots=True)
class Metric:
    """Unit and meaning of a metric.

    `unit` is empty for plain numbers. The unit "reward" means the unit of the method's reward: nats
    for log-prob, none for probabilities.
    """

    unit: str
    meaning: str


def describe(name: str) -> Metric:
    """Return the metric with this name; `<name>/<source>`, `<name>/<family>` etc. are valid too.

    Raises InputError for an unknown name.

    >>> describe("heldout/accuracy/gsm8k").meaning
    'answers that the checker marks correct, after a trace; of source gsm8k'
    """
    if name in METRICS:
        return METRICS[name]
    for known, metric in METRICS.items():
        stem, _, placeholder = known.partition("/<")
        if name.startswith(stem + "/") and name != stem + "/":
            part = name.removeprefix(stem + "/")  # the name of a source may contain slashes
            kind = placeholder.removesuffix(">") or "source"
            return Metric(metric.unit, f"{metric.meaning}; of {kind} {part}")
    raise unknown_name("metric", name, METRICS)


def markdown() -> str:
    """Return the text of docs/metrics.md."""
    parts = [_HEAD]
    for group, names in groupby(METRICS, key=_group):
        parts.append(f"## {group}\n\n{_GROUPS[group]}\n\n")
        for name in names:
            metric = METRICS[name]
            unit = f" ({metric.unit})" if metric.unit else ""
            parts.append(f"- `{name}`{unit}: {metric.meaning}\n")
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


METRICS: dict[str, Metric] = {
    "reward/mean": Metric("reward", "mean R of the step's traces"),
    "reward/base": Metric("reward", "mean R_base, the reward of the null trace `x START END y*`"),
    "reward/gain": Metric("reward", "mean R − R_base: how much a trace raises the reward"),
    "reward/gain_initial": Metric(
        "reward",
        "mean R − R of `x y*` without markers under the initial model; unlike R_base, this "
        "baseline cannot drift",
    ),
    "reward/beats_null": Metric("share", "traces with R > R_base"),
    "reward/capped": Metric("share", "baseline weights 1/p that were capped at 20 nats"),
    "reward/underflow": Metric("share", "rewards that are exactly 0"),
    "group/no_variance": Metric(
        "share", "groups whose advantages are all 0: they train only the answer and format terms"
    ),
    "group/filtered": Metric(
        "share", "sampled groups that the method's filter dropped and replaced (`rlpr-original`)"
    ),
    "group/std_average": Metric("reward", "the filter's moving average of a group's reward std"),
    "trace/length": Metric("tokens", "mean number of tokens in a trace, without END"),
    "trace/unfinished": Metric(
        "share", "traces to which END was appended; the sum of the next two"
    ),
    "trace/end_token": Metric(
        "share", "traces stopped by another end token (end of turn, eos), which END replaces"
    ),
    "trace/capped": Metric("share", "traces cut at `max_trace_tokens`"),
    "trace/entropy": Metric("nats/token", "mean entropy of the policy at the tokens of its traces"),
    "trace/log_ratio": Metric(
        "nats/token",
        "mean log π − log π_reference of the sampled tokens: with the initial model (`latro`) an "
        "estimate of the KL divergence from it, with a teacher that has read y* (`sdft`, `opsd`) "
        "minus the mean token advantage",
    ),
    "answer/logp": Metric(
        "nats/token",
        "log-probability of y* after the sampled trace, under the weights before the update",
    ),
    "answer/logp_null": Metric(
        "nats/token", "log-probability of y* after the null trace, under the same weights"
    ),
    "answer/logp_initial": Metric(
        "nats/token", "log-probability of y* in `x y*` without markers, under the initial model"
    ),
    "answer/correct": Metric(
        "share",
        "answers sampled after the traces that the checker marks correct, for methods that sample "
        "answers (`rlvr`, `rlpr-original`, `nover`, `sdft`, `opsd`)",
    ),
    "weights/<surprise>": Metric(
        "nats",
        "learnt weight of answer tokens with this −log c_base (`nrt-learned`), before "
        "normalisation",
    ),
    "ratio/mean": Metric(
        "",
        "mean π_θ/π_old of sampled tokens; 1 on a rollout's first update, unless its traces are of "
        "earlier weights (`sampler/behind`)",
    ),
    "ratio/clipped": Metric(
        "share",
        "sampled tokens whose ratio was clipped, so that the trace term has no gradient there",
    ),
    "loss/total": Metric(
        "",
        "loss, mean over the step's updates; its level means little, because advantages are "
        "centred",
    ),
    "loss/trace": Metric("", "trace term of the loss (policy gradient)"),
    "loss/answer": Metric("", "answer term of the loss, including β"),
    "loss/format": Metric("", "format term of the loss, including λ_format"),
    "optim/grad_norm": Metric("", "gradient norm before clipping, mean over the step's updates"),
    "optim/lr": Metric("", "learning rate of the step's last update"),
    "optim/updates": Metric("updates", "optimizer updates since the start of the run"),
    "guard/skipped": Metric(
        "updates",
        "updates skipped because the loss or the gradient was not finite; RUN/skipped/ has "
        "the batch",
    ),
    "data/epoch": Metric(
        "epochs", "passes over the training rows since the start of the run, with decimals"
    ),
    "data/dropped_prompts": Metric(
        "rows", "training rows left out because the prompt is longer than `max_prompt_tokens`"
    ),
    "data/dropped_answers": Metric(
        "rows", "training rows left out because the answer is longer than `max_answer_tokens`"
    ),
    "data/bad_rows": Metric(
        "rows", "rows that cannot be read or used (`data.on_bad_row=skip`); RUN/skipped/ lists them"
    ),
    "data/skipped": Metric(
        "share",
        "prompts drawn but skipped because their answer is already certain "
        "(`data.difficulty.skip_above`)",
    ),
    "data/truncated_answers": Metric(
        "rows", "training answers truncated to `max_answer_tokens` (`data.truncate_answers`)"
    ),
    "time/rollout": Metric(
        "s", "sampling the traces; with `overlap`, only the time spent waiting for them"
    ),
    "time/push": Metric(
        "s", "copying the weights to the sampler; almost 0 if it shares the trainer's weights"
    ),
    "time/score": Metric(
        "s",
        "scoring without gradient what an update's own forward does not compute (baselines "
        "under the initial model, filters)",
    ),
    "time/update": Metric(
        "s", "forward, backward and optimizer of all updates; the first may also score its rollout"
    ),
    "time/step": Metric("s", "whole step, without held-out evaluation and checkpoint"),
    "speed/rollout": Metric("tokens/s", "sampled tokens divided by `time/rollout`"),
    "speed/score": Metric("tokens/s", "tokens of the scored rows divided by `time/score`"),
    "speed/update": Metric(
        "tokens/s",
        "tokens of the rows trained on divided by `time/update`; a prompt forwarded once "
        "counts in each of its rows",
    ),
    "sampler/logp_gap": Metric(
        "nats",
        "mean absolute difference between a sampled token's log-probability from the sampler "
        "and from the trainer; far from 0: two different policies",
    ),
    "sampler/logp_gap_max": Metric("nats", "largest such difference"),
    "sampler/kl": Metric(
        "nats/token",
        "estimate of KL(sampler ‖ trainer): mean of (r − 1) − log r with r = π_trainer/π_sampler",
    ),
    "sampler/capped": Metric(
        "share",
        "sampled tokens whose π_trainer/π_sampler exceeds `objective.importance_cap`, if that "
        "is set",
    ),
    "sampler/behind": Metric(
        "share",
        "groups that count as sampled with earlier weights than those that score them: with "
        "`overlap` all, with `vllm.strict=false` those that are; the ratio corrects for it",
    ),
    "heldout/accuracy": Metric("share", "answers that the checker marks correct, after a trace"),
    "heldout/accuracy_served": Metric(
        "share",
        "`heldout/accuracy` as a server sees it: no answer if the model did not write END itself",
    ),
    "heldout/answer_marker": Metric(
        "share",
        "answers, after a trace, in which START or END stands: a sign that the answer term is too "
        "weak",
    ),
    "heldout/accuracy_null": Metric(
        "share", "answers that the checker marks correct, after the null trace"
    ),
    "heldout/accuracy_swapped": Metric(
        "share",
        "answers that the checker marks correct, after another question's trace "
        "(`heldout.swapped`)",
    ),
    "heldout/logp": Metric(
        "nats/token", "log-probability of y* after a trace, mean over its tokens"
    ),
    "heldout/logp_null": Metric(
        "nats/token", "log-probability of y* after the null trace, mean over its tokens"
    ),
    "heldout/logp_swapped": Metric(
        "nats/token", "log-probability of y* after another question's trace (`heldout.swapped`)"
    ),
    "heldout/gain": Metric("nats/token", "`heldout/logp` − `heldout/logp_null`"),
    "heldout/length": Metric("tokens", "mean number of tokens in a trace, without END"),
    "heldout/unfinished": Metric(
        "share", "traces to which END was appended; the sum of the next two"
    ),
    "heldout/end_token": Metric("share", "traces stopped by another end token"),
    "heldout/capped": Metric("share", "traces cut at `max_trace_tokens`"),
    "heldout/beats_null": Metric(
        "share",
        "rows whose reference answer is more likely after the trace than after the null trace",
    ),
    "readout/right": Metric(
        "share", "traces whose text the checker would accept as an answer: right traces"
    ),
    "readout/probability": Metric(
        "probability",
        "mean probability of the least likely token of y* after a right trace; while it falls, "
        "the policy learns to ignore its traces",
    ),
    "readout/advantage": Metric(
        "", "mean advantage of right traces; while it is below 0, they are being unlearned"
    ),
    "judge/quality": Metric(
        "score",
        "mean score in [0, 1] that a language model gives the traces of sampled held-out questions",
    ),
    "judge/failed": Metric(
        "share",
        "sampled rows without a verdict, which `judge/quality` leaves out; absent if there "
        "are none",
    ),
    "worked/<family>": Metric(
        "share", "traces that contain the complete, correct working of the problem"
    ),
    "p_key_given_worked/<family>": Metric(
        "probability",
        "probability of the answer's one hard token after a worked trace: the readout",
    ),
    "advantage_worked/<family>": Metric(
        "", "mean advantage of worked traces; while it is below 0, the family is being unlearned"
    ),
}

_GROUPS = {
    "reward": "Over the B × K traces of the step, under the weights before its update.",
    "group": "Over the B groups of the step.",
    "trace": "Over the B × K traces of the step.",
    "answer": "Mean over traces (or prompts) of the mean over the tokens of y*, including the "
    "token that ends the turn.",
    "weights": "State of the method after the step.",
    "ratio": "Over the sampled tokens of all updates of the step.",
    "loss": "The three terms sum to the total.",
    "optim": "State of the optimizer.",
    "guard": "Updates that were skipped ([reliability.md](reliability.md)).",
    "data": "Use of the training rows.",
    "time": "Wall time of the parts of a step.",
    "speed": "Without padding.",
    "sampler": "Sampler compared with the trainer; only if the sampler returns log-probabilities.",
    "heldout": "Before training, every `eval_every` steps and at the end. Also as "
    "`<name>/<source>` if rows name their source.",
    "readout": "Over the B × K traces of the step (at most 256), in runs with a checker "
    "(`heldout.checker`) other than `exact`. The last two need four right traces. Also as "
    "`<name>/<source>` if rows name several sources.",
    "judge": "Not in the file: `Run.metrics()`, and everything that reads it, adds them from the "
    "results of `nrt judge` ([judge.md](judge.md)).",
    "the miniature": "Only in runs of the miniature, whose world can tell which traces are "
    "correct; `<family>` is sum, bot or recall.",
}

_HEAD = """# Metrics

<!-- Generated by `python -m nrt.run.metrics > docs/metrics.md` from src/nrt/run/metrics.py. -->

    tail -n 1 runs/first/metrics.jsonl
    nrt report first --text

Each line of a run's `metrics.jsonl` has the `step` and some of these metrics. A metric without a
value in that step is absent or null. Shares are between 0 and 1. The unit of a reward depends on
the method: nats for `log-prob`, none for rewards made of probabilities. R is the reward of a trace,
R_base the reward of the null trace.

"""


def _group(name: str) -> str:
    return "the miniature" if "<family>" in name else name.partition("/")[0]


if __name__ == "__main__":
    print(markdown(), end="")
