"""Records of the memory of one GPU, in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResidentMemory:
    """Memory that is in use all the time; gradients only during updates."""

    weights: int
    masters: int  # float32 copies of weights in a shorter dtype
    gradients: int
    optimizer: int
    reference: int  # the initial model
    sampler: int  # the sampler's own weights; all of vLLM if it does not sleep

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class RolloutMemory:
    """Memory of the Hugging Face sampler, beyond what is resident."""

    rows: int  # traces decoded together
    cache: int  # keys and values of these traces, up to max_trace_tokens
    prompts: int  # keys and values of their prompts
    prefill: int  # of reading prompts: a growing copy of their cache, and one layer's activations
    distribution: int  # logits, log-probabilities and their cumulative sums over the vocabulary
    gathered: int  # fsdp: the whole model

    @property
    def total(self) -> int:
        return self.gathered + self.cache + self.prompts + max(self.prefill, self.distribution)


@dataclass(frozen=True)
class VllmMemory:
    """Memory of vLLM on the trainer's GPU, beyond what is resident."""

    rows: int  # traces decoded together: what the cache holds at mean lengths
    share: float  # of the GPU that vLLM takes (vllm.memory)
    weights: int
    working: int  # activations of its longest forward, and logits
    cache: int  # keys and values: the remaining share, and at least the longest sequence
    gathered: int  # fsdp: the trainer's whole model during a weight push, without vLLM's cache
    stays: bool  # also during updates; then it counts as resident

    @property
    def taken(self) -> int:
        return self.weights + self.working + self.cache

    @property
    def total(self) -> int:
        if self.stays:
            return self.gathered
        return max(self.taken, self.gathered + self.weights)


@dataclass(frozen=True)
class StepMemory:
    """Memory of one micro-batch's forward and backward, beyond what is resident."""

    tokens: int  # forwarded in the largest micro-batch
    kept: int  # for the backward, without recomputation
    kept_recomputed: int  # with recomputation
    null: int  # the null traces' part of the applicable one of these two
    tiles: int  # logits of the head, a part of `passing`
    passing: int  # maximum beyond `kept`: gradients of activations, logits, recomputed activations
    gathered: int  # fsdp: gathered parameters and gradients while a layer runs
    recompute: bool  # this micro-batch
    recompute_above: int | None  # tokens of a micro-batch; None: never

    def recomputes(self, tokens: int) -> bool:
        """True if the engine recomputes a micro-batch of so many tokens; none exceeds `tokens`."""
        above = self.recompute_above
        return above is not None and min(tokens, self.tokens) > above

    @property
    def activations(self) -> int:
        return self.kept_recomputed if self.recompute else self.kept

    @property
    def total(self) -> int:
        return self.activations + self.passing + self.gathered


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of each GPU."""

    resident: ResidentMemory
    rollout: RolloutMemory | VllmMemory | None  # None: nothing is sampled on this GPU
    update: StepMemory
    reserve: int

    gathered: int  # fsdp: the whole model, for a push or a checkpoint
    overlap: bool  # sampling and updates run at the same time
    host: int  # memory of the machine, not of the GPU; 0: not counted

    @property
    def sampling(self) -> int:
        """Maximum during the rollout."""
        rollout = self.rollout.total if self.rollout else 0
        if self.overlap:
            return self._between_updates + self.resident.gradients + self.update.total + rollout
        return self._between_updates + rollout

    @property
    def updating(self) -> int:
        """Maximum during the update."""
        if self.overlap:
            return self.sampling
        return self.resident.total + self.reserve + self.update.total

    @property
    def scoring(self) -> int:
        """Maximum of scoring without gradient, as in an evaluation; shards are gathered for it."""
        return self._between_updates + self.gathered + self.update.passing

    @property
    def saving(self) -> int:
        """Maximum during a checkpoint, and during a push to servers."""
        return self._between_updates + self.gathered

    @property
    def peak(self) -> int:
        return max(self.sampling, self.updating, self.scoring, self.saving)

    @property
    def _between_updates(self) -> int:
        return self.resident.total - self.resident.gradients + self.reserve


@dataclass(frozen=True)
class Serving:
    """Memory of verl's rollout server on one GPU."""

    weights: int
    cache: int  # keys and values: the rest of the server's share
    together: int  # rows at their caps that fit into the caches of one server

    @property
    def total(self) -> int:
        return self.weights + self.cache


@dataclass(frozen=True)
class ClusterMemory:
    """Memory of each GPU that verl trains and serves on, of the fullest rank."""

    resident: ResidentMemory  # during an update
    offloaded: int  # part of `resident` that is in the machine's memory during rollouts
    serving: Serving | None  # None: nothing is sampled
    activations: int  # that a micro-batch keeps for its backward
    passing: int  # maximum beyond these: gradients of activations, recomputed activations
    logits: int  # of a micro-batch
    gathered: int  # FSDP2: gathered parameters and gradients while a layer runs
    reserve: int  # for two processes: trainer and server

    @property
    def sampling(self) -> int:
        """Maximum during the rollout; gradients exist in updates only."""
        trainer = self.resident.total - self.resident.gradients - self.offloaded
        return self.reserve + trainer + (self.serving.total if self.serving else 0)

    @property
    def updating(self) -> int:
        """Maximum during the update."""
        temporary = self.activations + self.passing + self.logits + self.gathered
        return self.reserve + self.resident.total + temporary

    @property
    def peak(self) -> int:
        return max(self.sampling, self.updating)
