"""The table of metrics: what each name in metrics.jsonl means. `python -m nrt.metrics` prints docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from nrt.errors import unknown


@dataclass(frozen=True, slots=True)
class Metric:
    """`unit` is empty for plain numbers; a reward has the unit of its scheme (nats for log-prob, none for probabilities)."""

    unit: str
    meaning: str


def describe(name: str) -> Metric:
    """The metric of this name; `<name>/<source>`, `<name>/<family>` and the like are understood. Raises InputError for an unknown one.

    >>> describe("heldout/accuracy/gsm8k").meaning
    'answers that the checker finds right, after a trace; of source gsm8k'
    """
    if name in METRICS:
        return METRICS[name]
    for known, metric in METRICS.items():
        stem, _, kind = known.partition("/<")
        if name.startswith(stem + "/") and name != stem + "/":
            part = name.removeprefix(stem + "/")  # a source's own name may hold slashes
            return Metric(metric.unit, f"{metric.meaning}; of {kind.removesuffix('>') or 'source'} {part}")
    raise unknown("metric", name, METRICS)


def markdown() -> str:
    """docs/metrics.md."""
    parts = [_HEAD]
    for group, names in groupby(METRICS, key=_group):
        parts.append(f"## {group}\n\n{_GROUPS[group]}\n\n| name | unit | meaning |\n|---|---|---|\n")
        parts += [f"| `{name}` | {METRICS[name].unit} | {METRICS[name].meaning} |\n" for name in names]
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


METRICS: dict[str, Metric] = {
    "reward/mean": Metric("reward", "mean R of the step's traces"),
    "reward/base": Metric("reward", "mean R_base, the reward of the null trace `x START END y*`"),
    "reward/gain": Metric("reward", "mean R − R_base: what a trace is worth to the answer"),
    "reward/gain_initial": Metric("reward", "mean R − R of `x y*` without markers under the initial model; unlike R_base, it cannot drift"),
    "reward/beats_null": Metric("share", "traces with R > R_base"),
    "reward/capped": Metric("share", "baseline weights 1/p that were capped at 20 nats"),
    "reward/underflow": Metric("share", "rewards that are exactly 0"),
    "group/no_variance": Metric("share", "groups whose advantages are all 0: only answer and format terms learn from them"),
    "group/filtered": Metric("share", "groups drawn that the method's filter dropped and replaced (`rlpr-original`)"),
    "group/std_average": Metric("reward", "the filter's moving average of a group's reward std"),
    "trace/length": Metric("tokens", "mean number of tokens in a trace, END not counted"),
    "trace/unfinished": Metric("share", "traces to which END was appended; the sum of the next two"),
    "trace/end_token": Metric("share", "traces that another end token (end of turn, eos) stopped: END takes its place"),
    "trace/capped": Metric("share", "traces that were cut at `max_trace_tokens`"),
    "trace/entropy": Metric("nats/token", "mean entropy of the distributions that trace tokens were sampled from"),
    "answer/logp": Metric("nats/token", "log-probability of y* after the sampled trace, under the policy that sampled it"),
    "answer/logp_null": Metric("nats/token", "the same after the null trace"),
    "answer/logp_initial": Metric("nats/token", "the same in `x y*` without markers under the initial model"),
    "answer/correct": Metric("share", "answers sampled after the traces that the checker finds right (`rlvr`, `rlpr-original`)"),
    "weights/<surprise>": Metric("nats", "learnt weight of answer tokens of this −log c_base (`nrt-learned`), before it is normalised"),
    "ratio/mean": Metric("", "mean π_θ/π_old of sampled tokens; exactly 1 on a rollout's first update"),
    "ratio/clipped": Metric("share", "sampled tokens whose ratio was clipped, so that the trace term has no gradient there"),
    "loss/total": Metric("", "the loss, mean of the step's updates; its level says little, since advantages are centred"),
    "loss/trace": Metric("", "its trace term (policy gradient)"),
    "loss/answer": Metric("", "its answer term, β included"),
    "loss/format": Metric("", "its format term, λ_format included"),
    "optim/grad_norm": Metric("", "norm of the gradient before it was clipped, mean of the step's updates"),
    "optim/lr": Metric("", "learning rate of the step's last update"),
    "optim/updates": Metric("updates", "optimiser updates since the run began"),
    "guard/skipped": Metric("updates", "updates left out: the loss or the gradient was not finite; RUN/skipped/ has the batch"),
    "data/epoch": Metric("epochs", "passes over the training rows since the run began, with the fraction"),
    "data/dropped_prompts": Metric("rows", "rows of the training file left out because the prompt is longer than `max_prompt_tokens`"),
    "data/dropped_answers": Metric("rows", "rows of the training file left out because the answer is longer than `max_answer_tokens`"),
    "data/bad_rows": Metric("rows", "rows that could not be read or used (`data.on_bad_row=skip`); RUN/skipped/ lists them"),
    "data/skipped": Metric("share", "prompts drawn and skipped: their answer is certain already (`data.difficulty.skip_above`)"),
    "data/truncated_answers": Metric("rows", "answers of the training file cut to `max_answer_tokens` (`data.truncate_answers`)"),
    "time/rollout": Metric("s", "sampling the traces; with `overlap` what is left to wait for"),
    "time/push": Metric("s", "handing the weights to the sampler: next to nothing where it uses the trainer's own"),
    "time/score": Metric(
        "s", "scoring without gradient: what an update's own forward cannot tell (baselines under the initial model, filters)"
    ),
    "time/update": Metric("s", "forward, backward and optimiser of all updates; the first may score its rollout too"),
    "time/step": Metric("s", "the whole step, held-out evaluation and checkpoint left out"),
    "speed/rollout": Metric("tokens/s", "sampled tokens over `time/rollout`"),
    "speed/score": Metric("tokens/s", "tokens of the rows scored over `time/score`"),
    "speed/update": Metric(
        "tokens/s", "tokens of the rows trained on over `time/update`; a prompt forwarded once counts in each of its rows"
    ),
    "sampler/logp_gap": Metric(
        "nats", "mean absolute gap between a token's log-probability as sampled and as scored; far from 0: two policies"
    ),
    "sampler/logp_gap_max": Metric("nats", "the largest such gap"),
    "sampler/kl": Metric("nats/token", "estimate of KL(sampler ‖ trainer), mean of (r − 1) − log r with r = π_trainer/π_sampler"),
    "sampler/capped": Metric("share", "sampled tokens whose π_trainer/π_sampler exceeds `objective.importance_cap`, where that is set"),
    "sampler/behind": Metric(
        "share", "groups sampled under other weights than they were scored by (`overlap`, `vllm.strict=false`): the ratio corrects for it"
    ),
    "heldout/accuracy": Metric("share", "answers that the checker finds right, after a trace"),
    "heldout/accuracy_served": Metric(
        "share", "the same as a server would see it: where the model did not write END itself there is no answer"
    ),
    "heldout/accuracy_null": Metric("share", "answers that the checker finds right, after the null trace"),
    "heldout/accuracy_swapped": Metric("share", "the same, after another question's trace (`heldout.swapped`)"),
    "heldout/logp": Metric("nats/token", "log-probability of y* after a trace, mean of its tokens"),
    "heldout/logp_null": Metric("nats/token", "the same after the null trace"),
    "heldout/logp_swapped": Metric("nats/token", "the same after another question's trace (`heldout.swapped`)"),
    "heldout/gain": Metric("nats/token", "`heldout/logp` − `heldout/logp_null`"),
    "heldout/length": Metric("tokens", "mean number of tokens in a trace, END not counted"),
    "heldout/unfinished": Metric("share", "traces to which END was appended; the sum of the next two"),
    "heldout/end_token": Metric("share", "traces that another end token stopped"),
    "heldout/capped": Metric("share", "traces that were cut at `max_trace_tokens`"),
    "heldout/beats_null": Metric("share", "rows whose reference is likelier after the trace than after the null trace"),
    "judge/quality": Metric("score", "mean score in [0, 1] that a language model gives the traces of sampled held-out questions"),
    "judge/failed": Metric("share", "sampled rows without a verdict, which `judge/quality` leaves out; only where there are any"),
    "worked/<family>": Metric("share", "traces that work the problem out correctly to its end"),
    "p_key_given_worked/<family>": Metric("probability", "of the answer's one hard token after a worked trace: the readout"),
    "advantage_worked/<family>": Metric("", "mean advantage of worked traces; a family is being lost while it stays below 0"),
}

_GROUPS = {
    "reward": "Over the B × K traces of the step, under the policy that sampled them.",
    "group": "Over the B groups of the step.",
    "trace": "Over the B × K traces of the step.",
    "answer": "Mean over traces (or prompts) of the mean over the tokens of y*, the one that ends the turn included.",
    "weights": "State of the method, after the step.",
    "ratio": "Over the sampled tokens of all updates of the step.",
    "loss": "The three terms sum to the total.",
    "optim": "The optimiser.",
    "guard": "What was not done ([reliability.md](reliability.md)).",
    "data": "The training rows.",
    "time": "Wall time of the parts of a step.",
    "speed": "Padding not counted.",
    "sampler": "Sampler against scorer; only when the sampler gives log-probabilities.",
    "heldout": "Before training, every `eval_every` steps and at the end. Also as `<name>/<source>` when rows name their source.",
    "judge": "Not in the file: `Run.metrics()`, and all that reads it, adds them from what `nrt judge` wrote ([judge.md](judge.md)).",
    "the miniature": "Only in `nrt demo`, whose world tells which traces are right; `<family>` is sum, bot or recall.",
}

_HEAD = """# Metrics

<!-- Generated by `python -m nrt.metrics > docs/metrics.md`; the table itself is in src/nrt/metrics.py. -->

Each line of a run's `metrics.jsonl` has the `step` and any of these; a metric that a step has no value for is absent or null.
Shares are between 0 and 1. A reward has the unit of its scheme: nats for `log-prob`, none for those made of probabilities.
R is the reward of a trace, R_base that of the null trace.

"""


def _group(name: str) -> str:
    return "the miniature" if "<family>" in name else name.partition("/")[0]


if __name__ == "__main__":
    print(markdown(), end="")
