"""Sections of the config besides `data`, and the types that they share.

Each section is a frozen pydantic model; the docstring of a field is the description of the setting.
Equations and tables are those of the paper, arXiv 2602.11549.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _split_names(names: Any) -> Any:
    return names.split(",") if isinstance(names, str) else names


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
"""A list of names, written as `a,b` or as `[a, b]`."""


COMPLETE = {"complete": True}
"""Validation context for settings that no profile completes, such as those of a run."""


class Section(BaseModel):
    """Base class of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other settings. Unlike pydantic's own, it is validated, and a mapping
        changes only the settings of a section that it names.

        `deep` has no effect, since sections are frozen.
        """
        return type(self).model_validate(_merged(self, update or {}), context=COMPLETE)


def _merged(current: Any, update: Any) -> Any:
    """Return a section's settings with those of a mapping over them; other values are replaced."""
    if not isinstance(current, Section) or not isinstance(update, Mapping):
        return update
    values = {name: getattr(current, name) for name in type(current).model_fields}
    for name, value in update.items():
        values[name] = _merged(values.get(name), value)
    return values


class MarkersConfig(Section):
    """The control tokens START and END, and the initial values of their embedding rows."""

    start: str | None = "<|think_start|>"
    """Text of START; null: a trace follows the prompt directly, as in the authors' release."""
    end: str = "<|think_end|>"
    """Text of END."""
    start_from: str = "auto"
    """Initial row of a new START: a text (the mean over its tokens), `eos`, `mean` (over all
    tokens), or `auto`: of a few tokens the one after which the model continues most as without it
    (docs/methods.md)."""
    end_from: str = "\n"
    """Initial row of a new END: a text, `eos` or `mean`. The model first samples END where it would
    sample that text. A line break is robust; `eos` depends on the seed (docs/miniature.md)."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.start == self.end:
            message = "markers.start and markers.end are the same text; set two different texts"
            raise PydanticCustomError("same-markers", message)
        for name, text in (("start", self.start), ("end", self.end)):
            if text is not None and text.isalnum():
                raise PydanticCustomError(
                    "word-as-marker",
                    "markers.{name}={text} is a word, which answers may contain; write a text "
                    "like <|think_{name}|> (the token that it starts from: markers.{name}_from)",
                    {"name": name, "text": text},
                )
        return self


class OptimizerConfig(Section):
    """Settings of AdamW and its schedule."""

    name: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """torch's AdamW, or that of bitsandbytes with 8-bit state. `paged` moves parts of the state to
    the machine's memory when the GPU needs space."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate (Table 6)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up (Table 6: constant)."""
    warmup: Annotated[float, Field(ge=0)] = 0
    """Linear warm-up: a number of updates, or below 1 a share of all updates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of all parameters (Table 6)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of AdamW's moment estimates."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term added to AdamW's denominator."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""

    @property
    def is_8_bit(self) -> bool:
        """Whether bitsandbytes keeps the state in 8 bits. Such a state cannot be sharded."""
        return self.name != "adamw"


class ObjectiveConfig(Section):
    """Values that replace those of the method; null keeps the method's own value."""

    answer_weight: (
        Literal["signal", "reward", "beats-null", "posterior"]
        | Annotated[float, Field(ge=0)]
        | None
    ) = None
    """Weight of each answer token, for any method: `signal` (∂R/∂log c), `reward` (the reward of
    the trace), `beats-null` (1 after a trace that beats the null trace, else 0), `posterior` (the
    trace's share of the group's likelihood, times the number of traces) or a number."""
    signal_floor: Annotated[float, Field(ge=0)] | None = None
    """Smallest weight of an answer token where the answer weight is the signal."""
    signal_weight: Annotated[float, Field(ge=0)] | None = None
    """A number that replaces the signal, in methods whose answer weight is the signal; other
    methods keep theirs."""
    trace_coef: float | None = None
    """Coefficient of the trace term; with 0 only answers and markers are trained."""
    answer_coef: float | None = None
    """β, the coefficient of the answer term."""
    format_coef: float | None = None
    """λ_format, the coefficient of the cross-entropy of the two markers."""
    weight_norm: Literal["length", "sum", "none"] | None = None
    """Normalisation of the weights in a weighted sum: by the number of answer tokens, by their sum,
    or none. It scales reward and signal; the advantage changes only with objective.scale=none."""
    baseline_clip: bool | None = None
    """Clip rewards at the reward of the null trace (Eq. 9)."""
    base_layout: Literal["null", "bare"] | None = None
    """Row that gives R_base and the weights: `null` (x START END y*) or `bare` (x y*)."""
    base_policy: Literal["old", "initial"] | None = None
    """Model that gives R_base: `old`, the policy that sampled the traces, or `initial`."""
    centre: Literal["mean", "leave-one-out", "none"] | None = None
    """Value subtracted from the rewards of a group: their mean, the mean of the others, or none."""
    scale: Literal["std", "mean", "none"] | None = None
    """Divisor of the advantages of a group: the standard deviation of its rewards, their mean, or
    none."""
    ratio: Literal["ppo", "cispo", "none"] | None = None
    """Form in which π_θ/π_old enters the trace term."""
    ratio_clip: tuple[float, float] | None = None
    """(low, high): ratios are clipped to [1 − low, 1 + high]."""
    format_on: Literal["all", "unfinished"] | None = None
    """Traces whose markers get the format term: `all`, or `unfinished` ones, which the model did
    not end with END."""
    importance_cap: Annotated[float, Field(gt=0)] | None = None
    """Weigh the trace term of each sampled token by π_trainer/π_sampler, truncated at this value
    (2.0 is usual); unset: no weights (docs/vllm.md)."""
    appended_end_acts: bool | None = None
    """Let an appended END take part in the trace term, as in the authors' release."""
    loss_tokens: Positive | None = None
    """N, the constant in the loss denominator B·K·N (Dr.GRPO); unset: max_trace_tokens +
    max_answer_tokens."""


class LoraConfig(Section):
    """LoRA adapters by peft. The rows of the markers are trained too; saved models are merged."""

    rank: Count = 0
    """Rank of the adapters; 0: no adapters, all weights of the model are trained."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale: the product of the matrices is multiplied by alpha / rank; unset: 2 · rank."""
    targets: Names = ("all-linear",)
    """Names of the adapted layers, such as q_proj,v_proj; `all-linear`: all linear layers except
    the tables of the vocabulary."""


class VLLMConfig(Section):
    """Settings of sampler=vllm (docs/vllm.md).

    `dtype`, `memory`, `context` and `sleep` are for vLLM in the trainer's process; a rollout server
    has command-line options.
    """

    urls: Names = ()
    """Addresses of rollout servers (`nrt rollout-server`), which share the prompts; empty: vLLM
    runs in the trainer's process, on the same device."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of vLLM's weights; unset: the setting `dtype`."""
    memory: Annotated[float, Field(gt=0, lt=1)] | None = None
    """On a GPU the share of its memory that vLLM uses, weights included; unset: what the trainer
    leaves, or what vLLM needs if that is less. On a CPU the share of the machine's memory for keys
    and values; unset: 0.1."""
    context: Positive | None = None
    """Maximum sequence length in tokens; unset: prompt, trace and answer at their caps, or the
    model's limit."""
    sleep: Literal[0, 1, 2] = 1
    """Memory that vLLM frees on a GPU during updates: 0 nothing; 1 keys and values, with weights
    moved to the machine's memory; 2 keys and values and weights."""
    strict: bool = True
    """End the run when traces were sampled under other weights than the pushed ones. If false, the
    ratio uses the log-probabilities of the sampler as π_old."""
    wait: Annotated[float, Field(ge=0)] = 600.0
    """Seconds to wait for a server that does not answer."""


class HeldoutConfig(Section):
    """Held-out evaluation: before training, every `eval_every` steps and at the end."""

    rows: Positive = 200
    """Number of validation rows: the first of each source, equally many of each."""
    checker: str | None = None
    """Checker of answers: `exact`, `last-number`, `contains` or a dotted name `module:function`;
    unset: likelihood only."""
    greedy: bool = True
    """Decode traces greedily; if false, sample them. Answers are always greedy."""
    swapped: bool = False
    """Also answer after the trace of another question (same source, other document): a control for
    how much the content of the trace matters."""


class WatchConfig(Section):
    """Thresholds of warnings, one warning per metric; 0 disables it (docs/tuning.md).

    `length`, `entropy`, `beats_null` and `readout` warn when the mean over the last `steps` steps
    (readout: 5) falls below this share of the mean over the first `steps` steps of the run.
    """

    length: Fraction = 0.25
    """Threshold of trace/length."""
    entropy: Fraction = 0.02
    """Threshold of trace/entropy; low, since entropy falls in good runs too."""
    beats_null: Fraction = 0.25
    """Threshold of reward/beats_null."""
    readout: Fraction = 0.5
    """Threshold of readout/probability: below it the policy ignores its traces."""
    end_token: Fraction = 0.2
    """Maximum share of traces that an end token other than END stops (trace/end_token, mean over
    the last `steps` steps); checked after 50 steps."""
    steps: Positive = 20
    """Number of steps in each mean."""
