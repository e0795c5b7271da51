"""The schema: one frozen pydantic model, every setting with its type, default and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

SCHEMA_VERSION = 1
AUTO_TOKENS = 16384
"""What tokens_per_batch=auto begins with, where a CPU's memory does not bound it."""

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: names.split(",") if isinstance(names, str) else names)]  # a,b or [a, b]


class Through(dict[str, Any]):
    """Settings that are somebody else's; never changed, so that a config stays hashable."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(repr(self))


Passed = Annotated[dict[str, Any], AfterValidator(Through)]


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False)


class Columns(Section):
    """Which columns of a data file hold what; unset ones are guessed from the first row (docs/data.md).

    Text with braces is made of columns: `{passage}\\n\\n{question}`, `{choices[0]}`, and `{answers:, }` joins a list.
    """

    question: str | None = None
    """The question (one user turn, or the turns before the answer)."""
    answer: str | None = None
    """The reference answer y*."""
    messages: str | None = None
    """Chat turns, whose last assistant turn is y*."""
    system: str | None = None
    """The system message, where the turns have none."""
    source: str | None = None
    """Where a row comes from; metrics and accuracies are also given by source."""


class TextConfig(Section):
    """Documents instead of pairs: each is cut into prefix → continuation, without a chat template."""

    at: Literal["sentences", "stride", "entropy"] = "sentences"
    """Where to cut: after a sentence or line, every `stride` tokens, or where the model is least certain of the next token."""
    column: str = "text"
    """Column with the document; a .txt file is one document."""
    prefix_tokens: Positive = 256
    """Most tokens of the document before a cut."""
    continuation_tokens: Positive = 64
    """Tokens after it: y*."""
    stride: Positive = 64
    """Least distance between two cuts, in tokens; also the first cut's distance from the beginning."""
    most: Positive | None = None
    """Most cuts a document: the first ones, or with `entropy` the least certain; unset: all."""
    space: Literal["keep", "prefix", "drop"] = "keep"
    """Tokens of white space at a cut: left where they are, moved before the cut, or dropped (START and END stand in their place)."""


class Reading(Section):
    """How rows become pairs."""

    columns: Columns = Columns()
    """Column mapping."""
    rows: str | None = None
    """Key of the list of rows in a JSON file; unset: the file's only list."""
    answer: str = "whole"
    """`whole`; `after:MARK`: what follows the last MARK (GSM8K: `after:####`); `before:MARK`: what stands before the first."""
    references: Literal["first", "random", "each"] | None = None
    """Where the answer column is a list of right answers: train on the first, on one drawn for each row, or make a row of each."""
    system: str | None = None
    """A system message put before every example that has none."""
    text: TextConfig | None = None
    """Set: the files hold documents, not pairs."""


class Source(Section):
    """One source among several."""

    path: str
    """File, folder, glob or `datasets` name."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the rows drawn, relative to the other sources; set for all or for none (then each row is drawn once an epoch)."""
    name: str | None = None
    """`source` of the rows that name none themselves."""
    columns: Columns | None = None
    """This and what follows: unset, as in `data`."""
    rows: str | None = None
    """As `data.rows`."""
    answer: str | None = None
    """As `data.answer`."""
    references: Literal["first", "random", "each"] | None = None
    """As `data.references`."""
    system: str | None = None
    """As `data.system`."""
    text: TextConfig | None = None
    """As `data.text`."""

    def reading(self, default: Reading) -> Reading:
        """How this source's rows become pairs."""
        own = {name: value for name in Reading.model_fields if (value := getattr(self, name)) is not None}
        return Reading(**{name: getattr(default, name) for name in Reading.model_fields} | own)


def _named(value: Any) -> Any:
    """Paths in a list of sources become sources."""
    return [{"path": item} if isinstance(item, str) else item for item in value] if isinstance(value, list | tuple) else value


Sources = Annotated[tuple[Source, ...], Field(min_length=1), BeforeValidator(_named)]


class Difficulty(Section):
    """Prompts chosen by how likely their answer is already, after the null trace; costs one forward pass a candidate."""

    skip_above: Annotated[float, Field(gt=0, le=1)] | None = None
    """Skip prompts each of whose answer tokens has at least this probability: there is nothing left to reason for."""
    pool: Annotated[float, Field(ge=1)] = 1.0
    """Candidates a prompt trained on; above 1 they are drawn from without replacement, by surprisal."""
    power: Annotated[float, Field(ge=0)] = 1.0
    """Chance of a candidate ∝ (−mean log-prob)^power; 0: all alike."""


class DataConfig(Reading):
    """Question–answer pairs."""

    train: str | Sources | None = None
    """File, folder or glob (JSONL, JSON, CSV, parquet; .gz, .zst), `datasets` name, or a list of sources with weights."""
    valid: str | Sources | None = None
    """The same for held-out evaluation; none: no held-out evaluation."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used ends the run before it begins, or is counted and listed in RUN/skipped/."""
    truncate_answers: bool = False
    """Cut answers longer than max_answer_tokens instead of dropping the row."""
    shuffle: bool = True
    """Draw the rows in a new random order each epoch."""
    group_by_length: bool = False
    """Batches of rows of like length, in random order: less padding, at the price of less mixing."""
    difficulty: Difficulty = Difficulty()
    """Which of the prompts drawn are trained on."""

    def sources(self, kind: Literal["train", "valid"]) -> tuple[Source, ...]:
        """The training or validation data as sources."""
        given = self.train if kind == "train" else self.valid
        sources = (Source(path=given),) if isinstance(given, str) else given or ()
        if kind == "train":
            return sources
        once = {"references": "first"}  # a question counts once; any of its references is right
        return tuple(s.model_copy(update=once) if (s.references or self.references) == "each" else s for s in sources)


class MarkersConfig(Section):
    """The two control tokens, and what their new embedding rows start from."""

    start: str | None = "<|think_start|>"
    """Text of START; null: a trace follows the prompt at once (the authors' release)."""
    end: str = "<|think_end|>"
    """Text of END."""
    start_from: str = "auto"
    """Text whose embedding a new START copies (the mean of its tokens), `eos`, `mean`, or `auto`: of a few tokens the one after which the
    model goes on most as without it (docs/methods.md)."""
    end_from: str = "\n"
    """Text, `eos` or `mean` for END, which is first sampled where that text would be: a line break is robust (docs/miniature.md)."""


class OptimizerConfig(Section):
    """AdamW."""

    name: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """torch's, or bitsandbytes' with its state in 8 bits; paged: parts of it wait in the machine's memory (GPU)."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate (Table 6)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up (Table 6: constant)."""
    warmup: Annotated[float, Field(ge=0)] = 0
    """Warm-up: a number of updates, or below 1 a share of all updates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay on all parameters (Table 6)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's betas."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""


class ObjectiveConfig(Section):
    """Values set over the method; unset ones (null) are the method's own."""

    answer_weight: Literal["signal", "reward"] | Annotated[float, Field(ge=0)] | None = None
    """Weight of each answer token, for any method: `signal` (∂R/∂log c), `reward` (the trace's own) or a number."""
    signal_weight: Annotated[float, Field(ge=0)] | None = None
    """A number in place of the signal, for methods whose answer weight it is; others keep theirs."""
    trace_coef: float | None = None
    """Coefficient of the trace term; 0 leaves answers and markers only."""
    answer_coef: float | None = None
    """β, the coefficient of the answer term."""
    format_coef: float | None = None
    """λ_format, the coefficient of the two markers' cross-entropy."""
    weight_norm: Literal["length", "sum", "none"] | None = None
    """Normalisation of the weighted sums' weights; changes the signal, never the advantage."""
    baseline_clip: bool | None = None
    """Clip rewards against the null trace (Eq. 9)."""
    base_layout: Literal["null", "bare"] | None = None
    """What R_base and the weights are taken after: `null` (x START END) or `bare` (x alone)."""
    base_policy: Literal["old", "initial"] | None = None
    """And under which model: the policy that sampled, or the initial one."""
    centre: Literal["mean", "leave-one-out", "none"] | None = None
    """What is subtracted within a group."""
    scale: Literal["std", "none"] | None = None
    """What the group's advantages are divided by."""
    ratio: Literal["ppo", "cispo", "none"] | None = None
    """How π_θ/π_old enters the trace term."""
    ratio_clip: tuple[float, float] | None = None
    """PPO clip range: ratios are clipped to [1 − low, 1 + high]."""
    format_on: Literal["all", "unfinished"] | None = None
    """Traces whose markers get the format term."""
    importance_cap: Annotated[float, Field(gt=0)] | None = None
    """Weigh each sampled token's trace term by π_trainer/π_sampler, at most this (2.0 is usual); unset: not at all (docs/running.md)."""
    appended_end_acts: bool | None = None
    """An END that was appended takes part in the trace term, as in the authors' release."""
    loss_tokens: Positive | None = None
    """N, the one constant denominator (Dr.GRPO); unset: max_trace_tokens + max_answer_tokens."""


class LoraConfig(Section):
    """LoRA by peft; the markers' rows are trained beside it, and what is saved is merged."""

    rank: Count = 0
    """Of the trained matrices; 0: all of the model's weights are trained."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Their product is scaled by alpha / rank; unset: 2 · rank."""
    targets: Names = ("all-linear",)
    """Names of the layers that get them, such as q_proj,v_proj; all-linear: all but the vocabulary's."""


class VLLMConfig(Section):
    """vLLM as the sampler (docs/running.md)."""

    urls: Names = ()
    """Rollout servers (`nrt rollout-server`), which share the prompts; none: vLLM runs in this process, on the same device."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of vLLM's weights; unset: `dtype`. This setting and those up to `sleep` are for this process: a server has options."""
    memory: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a GPU's memory that vLLM takes, weights included (unset: what the trainer leaves); on a CPU of the machine's, for keys and
    values (unset: .1)."""
    context: Positive | None = None
    """Longest sequence in tokens; unset: prompt, trace and answer at their caps, or what the model can."""
    sleep: Literal[0, 1, 2] = 1
    """What vLLM gives back during updates, on a GPU: 1 keys and values, weights wait in the machine's memory; 2 weights too; 0 nothing."""
    strict: bool = True
    """Traces sampled under other weights than were pushed end the run; otherwise the ratio takes their own log-probabilities as π_old."""
    wait: Annotated[float, Field(ge=0)] = 600.0
    """Seconds to wait for a server that does not answer."""


class HeldoutConfig(Section):
    """Held-out evaluation, before training, every `eval_every` steps and at the end."""

    rows: Positive = 200
    """How many validation rows (the first ones)."""
    checker: str | None = None
    """Right or wrong: exact, last-number, contains, or a dotted name; none: likelihood only."""
    greedy: bool = True
    """Greedy traces; otherwise sampled at temperature 1. Answers are greedy."""
    swapped: bool = False
    """Also answer after another question's trace (of the same source, of another document): a control for what the trace says."""


class WatchConfig(Section):
    """When to warn, once a metric; 0 turns a warning off (docs/reliability.md). The first three: a mean over `steps` steps falls below
    this share of the mean over the run's first `steps`."""

    length: Fraction = 0.25
    """Of trace/length."""
    entropy: Fraction = 0.02
    """Of trace/entropy, which falls in good runs too."""
    beats_null: Fraction = 0.25
    """Of reward/beats_null."""
    end_token: Fraction = 0.2
    """Most traces that end tokens other than END may still stop after 50 steps (trace/end_token, mean over `steps`)."""
    steps: Positive = 20
    """Number of steps that the means are over."""


class Config(Section):
    """A whole run."""

    model: str | None = None
    """Folder or hub name of any Hugging Face causal language model."""
    method: str = "nrt-ws-neg-log-p"
    """Row of the methods table (nrt.objective.METHODS)."""
    profile: str = "recommended"
    """Named set of values: recommended, paper or release (docs/methods.md)."""
    data: DataConfig = DataConfig()
    """Where the pairs come from."""
    run: str = "run"
    """Name (a folder in runs/) or path of the run folder."""
    resume: str | None = None
    """Run to go on with, from its last checkpoint."""
    seed: int = 0
    """Seeds the data order and the sampling of traces."""
    steps: Positive | None = None
    """Rollout batches; unset: one epoch."""
    batch: Positive = 256
    """B, prompts a step (Table 6)."""
    traces: int = 8
    """K, traces a prompt (Table 6)."""
    max_prompt_tokens: Positive = 4096
    """Longer prompts are dropped and counted (Table 6)."""
    max_trace_tokens: Positive = 2048
    """Cap on sampled trace tokens, END included (Table 6)."""
    max_answer_tokens: Positive = 2048
    """Longer answers are dropped and counted, or truncated if data.truncate_answers."""
    updates_per_rollout: Positive = 1
    """Optimiser updates a step; each takes batch / updates_per_rollout prompts (Table 6: 4)."""
    overlap: bool = False
    """Sample the next step's traces during the update, with the weights from before it (docs/performance.md); one more model in memory."""
    tokens_per_batch: Positive | Literal["auto"] = "auto"
    """Most tokens in one forward pass; longer steps accumulate gradients. `auto`: 16384, halved once if memory runs out;
    on a CPU at most what takes a quarter of the machine's memory."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward and compute the rest again: less memory, about a third more time."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Values over the method."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    lora: LoraConfig = LoraConfig()
    """Small matrices trained beside the model's frozen weights (docs/running.md)."""
    quantize: Literal["nf4"] | None = None
    """Hold the frozen weights of linear layers in 4 bits (QLoRA); needs lora.rank."""
    markers: MarkersConfig = MarkersConfig()
    """START and END."""
    heldout: HeldoutConfig = HeldoutConfig()
    """Held-out evaluation."""
    eval_every: Count = 50
    """Steps between held-out evaluations; 0: only before and after."""
    save_every: Count = 50
    """Steps between checkpoints; 0: only at the end or when interrupted."""
    keep: Positive = 2
    """Checkpoints kept: the latest ones."""
    keep_best: str | None = None
    """And the best by this held-out metric, such as heldout/accuracy, which is saved when it is found; a leading `-`: smaller is better."""
    save_signal: str | None = "SIGUSR1"
    """Signal at which a checkpoint is saved and the run goes on; null: none (Windows has no SIGUSR1)."""
    max_skipped: Positive = 3
    """Updates in a row that are skipped because loss or gradient are not finite before the run ends (docs/reliability.md)."""
    watch: WatchConfig = WatchConfig()
    """When to warn that traces collapse, or do not end with END."""
    log_traces: Count = 1
    """Groups a step written to traces.jsonl (the first ones of the batch); 0: none."""
    initial_reference: bool = True
    """Keep a frozen copy of the initial model for the gain against `x y*` under it (one more model in memory)."""
    engine: Literal["local", "verl"] = "local"
    """What runs the updates: this process, or verl on a Ray cluster (docs/cluster.md)."""
    nodes: Positive = 1
    """Machines of the cluster (engine=verl)."""
    gpus_per_node: Positive = 1
    """GPUs of each, or processes where device=cpu (engine=verl)."""
    verl: Passed = Through()
    """Settings of verl's own config over what nrt sets there, `verl.actor_rollout_ref.rollout.name=sglang` (engine=verl)."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun, `ddp`: each process holds all weights, or `fsdp`: a part of them; `auto`: ddp where it fits (docs/running.md)."""
    sampler: Literal["hf", "vllm"] = "hf"
    """What samples traces and answers: the trainer's own model, or vLLM (docs/running.md)."""
    sampler_rows: Positive = 512
    """Most sequences decoded together: fewer need less memory for keys and values, and change nothing but the speed."""
    sampler_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Most mean gap (nats) between sampler's and trainer's log-probabilities at the start; unset: for vllm 1e-3, .05 in bfloat16."""
    vllm: VLLMConfig = VLLMConfig()
    """vLLM as the sampler."""
    device: str = "auto"
    """auto: CUDA, else MPS, else CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameters' type in forward, backward and sampling; the optimiser holds float32 copies of shorter ones."""
    threads: Positive | None = None
    """CPU threads of torch; tiny models are fastest with 1."""
    trackers: Names = ()
    """tensorboard, wandb, trackio: metrics go there too (through accelerate.tracking)."""
    observer: str | None = None
    """Dotted name `module:function` of (rollout, tokenizer) -> dict of further metrics."""
    plugins: Names = ()
    """Modules to import first; they may add methods (docs/new-method.md)."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
