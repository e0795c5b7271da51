"""Top level of the config: all settings of a run, each with its type, default and meaning.

Tables are those of the paper, arXiv 2602.11549.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from nrt.config.data_sections import DataConfig
from nrt.config.recipes import merge_settings, read_profile
from nrt.config.sections import (
    Count,
    HeldoutConfig,
    LoraConfig,
    MarkersConfig,
    Names,
    ObjectiveConfig,
    OptimizerConfig,
    Positive,
    Section,
    VLLMConfig,
    WatchConfig,
)
from nrt.config.service_sections import HubConfig, TrackingConfig
from nrt.config.validation import check_combinations, check_keys, first_error
from nrt.errors import InputError

AUTO_TOKENS_PER_BATCH = 16384
"""Initial value of tokens_per_batch=auto, unless a CPU machine has memory for fewer tokens."""


class VerlSettings(dict[str, Any]):
    """Settings of verl, passed through unchanged; hashable, so that a config is."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(repr(self))


class Config(Section):
    """All settings of a run. A config is valid, and its profile applied, however it is made.

    Raises InputError for an unknown setting, a value of the wrong type, and values that exclude one
    another.
    """

    model: str | None = None
    """Folder, GGUF file or hub name of a Hugging Face causal language model."""
    method: str = "nrt-ws-neg-log-p"
    """Name of the training method, a key of nrt.objective.METHODS (docs/methods.md)."""
    profile: str = "recommended"
    """Named set of values under the recipe: recommended, paper or release (docs/methods.md)."""
    data: DataConfig = DataConfig()
    """Training and validation data."""
    run: str | None = None
    """Name of the run (a folder in runs/), or path of its folder; unset: the first of run, run-2, …
    that is free."""
    resume: str | None = None
    """Run to resume from its last checkpoint."""
    seed: int = 0
    """Seed of the data order and of the sampled traces."""
    steps: Positive | None = None
    """Number of rollout batches; unset: what `epochs` says."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Passes over the training rows, in place of `steps`; both unset: one (Table 6)."""
    batch: Positive = 256
    """B, prompts per step (Table 6)."""
    traces: int = 8
    """K, traces per prompt (Table 6)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the policy over traces: sampling divides the logits by it, and so do scores,
    ratios and gradients of sampled tokens. Answers are scored, and decoded greedily, at 1."""
    max_prompt_tokens: Positive = 4096
    """Maximum prompt length; rows with a longer prompt are dropped and counted (Table 6)."""
    max_trace_tokens: Positive = 2048
    """Maximum number of sampled tokens of a trace, END included (Table 6)."""
    max_answer_tokens: Positive = 2048
    """Maximum answer length; rows with a longer answer are dropped and counted, or truncated with
    data.truncate_answers (Table 6: 4096 for trace and answer together)."""
    updates_per_rollout: Positive = 1
    """Optimizer updates per step, each on batch / updates_per_rollout prompts (Table 6: 4)."""
    overlap: bool = False
    """Sample the traces of the next step during the update, under the weights before it
    (docs/performance.md). With sampler=hf each process needs memory for one more model."""
    tokens_per_batch: Positive | Literal["auto"] = "auto"
    """Maximum tokens in one forward pass; larger updates accumulate gradients. `auto`: 16384,
    halved once if memory runs out; on a CPU at most the tokens that fit in a quarter of the
    machine's memory."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Store only the inputs of the layers and recompute the rest in the backward pass: less memory,
    about a third more time. `auto`: on CUDA only micro-batches that do not fit into free memory
    otherwise; all with 4-bit weights, padded rows, models whose memory cannot be counted,
    overlap=true with sampler=hf, and engine=verl; none on a CPU."""
    compile: bool | Literal["auto"] = "auto"
    """Run decoder layers through torch.compile where rows are scored: fewer passes over the
    activations. `auto`: on CUDA, if a first comparison finds the same numbers."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Values that replace those of the method."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    lora: LoraConfig = LoraConfig()
    """LoRA: small trained matrices beside the frozen weights of the model (docs/running.md)."""
    quantize: Literal["nf4"] | None = None
    """Hold the frozen weights of linear layers in 4 bits (QLoRA); needs lora.rank."""
    markers: MarkersConfig = MarkersConfig()
    """The control tokens START and END."""
    heldout: HeldoutConfig = HeldoutConfig()
    """Held-out evaluation."""
    eval_every: Count = 50
    """Steps between held-out evaluations; 0: only before and after training."""
    save_every: Count = 50
    """Steps between checkpoints; 0: only at the end or on an interruption."""
    keep: Positive = 2
    """Number of latest checkpoints that are kept."""
    keep_best: str | None = None
    """Also save and keep the checkpoint that is best by this held-out metric, such as
    heldout/accuracy. With a leading `-`, smaller is better."""
    save_signal: str | None = "SIGUSR1"
    """Signal on which the trainer saves a checkpoint and continues; null: none. Windows has no
    SIGUSR1."""
    max_skipped: Positive = 3
    """Number of consecutive updates with a loss or gradient that is not finite after which the run
    ends; each is skipped (docs/reliability.md)."""
    watch: WatchConfig = WatchConfig()
    """Thresholds of warnings: traces collapse, are ignored, or do not end with END."""
    log_traces: Count = 1
    """Groups per step written to traces.jsonl, from the beginning of the batch; 0: none."""
    initial_reference: bool = True
    """Keep a frozen copy of the initial model, for the gain of the answer over `x y*` under that
    model. Needs memory for one more model, except with adapters."""
    engine: Literal["local", "verl"] = "local"
    """Engine of the updates: in this process, or in verl on a Ray cluster (docs/cluster.md)."""
    nodes: Positive = 1
    """Number of machines in the cluster (engine=verl)."""
    gpus_per_node: Positive = 1
    """GPUs per machine, or processes with device=cpu (engine=verl)."""
    verl: Annotated[dict[str, Any], AfterValidator(VerlSettings)] = Field(
        default_factory=VerlSettings
    )
    """Settings of verl's own config that replace the values set by nrt, such as
    `verl.actor_rollout_ref.rollout.name=sglang` (engine=verl)."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: with `ddp` each process holds all weights, with `fsdp` a shard of them;
    `auto`: ddp if it fits in memory (docs/several-gpus.md)."""
    sampler: Literal["hf", "vllm"] = "hf"
    """Sampler of traces and answers: the trainer's own model, or vLLM (docs/vllm.md)."""
    sampler_rows: Positive = 512
    """Maximum number of sequences decoded together. Fewer need less memory for keys and values;
    only the speed depends on it."""
    sampler_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Maximum mean difference, in nats, between the log-probabilities of sampler and trainer before
    training; unset: with vllm 1e-3, or 0.05 in bfloat16."""
    vllm: VLLMConfig = VLLMConfig()
    """Settings of sampler=vllm."""
    device: str = "auto"
    """Device of the trainer; `auto`: CUDA if available, else MPS, else the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters in forward, backward and sampling. The optimizer holds float32 copies
    of bfloat16 parameters."""
    threads: Positive | None = None
    """CPU threads of torch; tiny models are fastest with 1."""
    trackers: Names = ()
    """Trackers that also receive the metrics: tensorboard, wandb, trackio (docs/trackers.md)."""
    tracking: TrackingConfig = TrackingConfig()
    """How the run appears in the trackers."""
    hub: HubConfig = HubConfig()
    """Upload of the model to the Hugging Face hub during training."""
    observer: str | None = None
    """Function for additional metrics, as `module:function`: (rollout, tokenizer) → dict."""
    plugins: Names = ()
    """Modules to import before the run starts; they may add methods (docs/new-method.md)."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @property
    def token_limit(self) -> int:
        """`tokens_per_batch` as a number, where nothing measures what `auto` fits."""
        return AUTO_TOKENS_PER_BATCH if self.tokens_per_batch == "auto" else self.tokens_per_batch

    @property
    def cluster_recomputes(self) -> bool:
        """`gradient_checkpointing` with engine=verl, where no component measures free memory."""
        return self.gradient_checkpointing is not False

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other settings, validated."""
        if update and update.get("profile", self.profile) != self.profile:
            raise InputError(
                f"the values of profile={self.profile} are part of this config already; make a "
                "config with the other profile: load_config(RECIPE, profile=…)"
            )
        return super().model_copy(update=update, deep=deep)

    @model_validator(mode="wrap")
    @classmethod
    def _complete_and_check(
        cls, settings: Any, validate: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """Put the settings over those of their profile, unless they are complete, and check all."""
        if isinstance(settings, Mapping):
            check_keys(cls, settings)
            if not (info.context or {}).get("complete"):
                settings = _with_profile(settings)
        try:
            config = validate(settings)
        except ValidationError as error:
            raise first_error(cls, error) from None
        check_combinations(config)
        return config


def _with_profile(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings over those of the profile that they name."""
    plain = {}
    for name, value in settings.items():
        # of a section, what was set: its defaults must not hide the profile's values
        plain[name] = value.model_dump(exclude_unset=True) if isinstance(value, Section) else value
    profile = str(settings.get("profile", Config.model_fields["profile"].default))
    return merge_settings(read_profile(profile), plain)
