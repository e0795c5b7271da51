"""verl's trainer without its loop: it samples, scores and updates on request.

`PPOTrainerSync` builds worker groups, rollout servers and the transfer of weights. Its loop, data
loader, replay buffer and rewards are not used: nrt makes the batches, in its own order, and sends
them to the workers directly.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from nrt.backends.verl.batch import filler_row, score_batch, split_tails, update_batch
from nrt.backends.verl.loss import worker_loss
from nrt.backends.verl.sampling import PromptRequest, SamplingManager
from nrt.objective import Method, RowCredit
from nrt.types import Row, Sample


class NrtTrainer(PPOTrainerSync):
    """Samples, scores and updates with verl's workers and servers.

    Args:
        tokens: maximum tokens that a worker forwards at once. A longer row is forwarded by itself.
    """

    def __init__(self, config: Any, method: Method, *, tokens: int) -> None:
        super().__init__(config)
        self.method = method
        self.tokens = tokens
        self.curr_step_profile = False
        self.awake = False  # True if the servers hold the workers' current weights

    def _build_replay_buffer(self) -> None:
        """Build none: samples return as results."""

    def _init_dataloader(self) -> None:
        """Build none: nrt's own loop draws the pairs."""

    def _setup(self) -> None:
        super()._setup()
        self.actor_rollout_wg.set_loss_fn(partial(worker_loss, method=self.method))
        self.sampling = SamplingManager.create(config=self.config, llm_client=self.get_llm_client())
        rank_of_worker = self.actor_rollout_wg._query_dispatch_info("actor")
        self.actor_rollout_wg._dispatch_info["actor"] = rank_of_worker
        self.ranks = max(rank_of_worker) + 1  # data-parallel ranks

    def on_init_end(self) -> None:
        """Leave the servers asleep until the first request."""

    def load(self, folder: Path) -> None:
        """Load what `save` wrote; each worker loads its part."""
        self.actor_rollout_wg.load_checkpoint(local_path=str(folder))

    def save(self, folder: Path) -> None:
        """Save verl's checkpoint, each worker its part, and the whole model in `huggingface`."""
        self.sleep()
        self.actor_rollout_wg.save_checkpoint(str(folder), None, self.global_steps)

    def sample(self, requests: Sequence[PromptRequest]) -> list[list[Sample]]:
        """Return samples under the current weights."""
        if not self.awake:
            self.checkpoint_manager.update_weights(self.global_steps)  # also wakes the servers
            self.awake = True
        return self.sampling.sample(requests)

    def sleep(self) -> None:
        """Let the servers release their weights and caches."""
        if self.awake:
            self.checkpoint_manager.sleep_replicas()
            self.awake = False

    def score(self, rows: Sequence[Row], *, initial: bool) -> list[tuple[Tensor, Tensor]]:
        """Return (log-probabilities, entropies) of each row's tail."""
        self.sleep()
        dealt, places = self._deal(rows)
        tensors = score_batch(dealt)
        batch = self._batch(tensors, dealt, compute_loss=False, calculate_entropy=True)
        compute = self.actor_rollout_wg.compute_log_prob
        if initial:
            compute = self.ref_policy_wg.compute_ref_log_prob
        output = compute(batch)
        logps = split_tails(output["log_probs"], tensors["responses"])
        entropies = split_tails(output["entropy"], tensors["responses"])
        scores = dict(zip(places, zip(logps, entropies, strict=True), strict=True))
        return [scores[i] for i in range(len(rows))]

    def update(
        self, rows: Sequence[Row], credits: Sequence[RowCredit], *, denominator: float
    ) -> dict[str, float]:
        """Take one optimizer step; return verl's metrics and those of `worker_loss`."""
        self.sleep()
        dealt, places = self._deal(rows)
        pairs = []
        for row, place in zip(dealt, places, strict=True):
            pairs.append((row, credits[place]) if place < len(rows) else filler_row(row))
        dealt_rows, dealt_credits = zip(*pairs, strict=True)
        batch = self._batch(
            update_batch(dealt_rows, dealt_credits),
            dealt,
            calculate_entropy=False,
            nrt_denominator=denominator,
            global_batch_size=len(dealt),
            mini_batch_size=len(dealt),
            epochs=1,
            dataloader_kwargs={"shuffle": False},
        )
        output = self.actor_rollout_wg.update_actor(batch)
        return reduce_metrics(tu.get(output, "metrics"))

    def _deal(self, rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
        """Return the rows in the order of the ranks that take them, and the place of each.

        Each rank gets equally many rows with about equally many tokens. If the ranks do not divide
        the number of rows, copies of the shortest row fill up; their places begin at len(rows).
        """
        shortest = min(rows, key=lambda row: len(row.ids))
        filled = [*rows, *[shortest] * (-len(rows) % self.ranks)]
        parts = get_seqlen_balanced_partitions(
            [len(row.ids) for row in filled], k_partitions=self.ranks, equal_size=True
        )
        places = [i for part in parts for i in sorted(part)]
        return [filled[i] for i in places], places

    def _batch(self, tensors: dict[str, Tensor], rows: Sequence[Row], **settings: Any) -> Any:
        longest = max(len(row.ids) for row in rows)
        settings |= {"max_token_len_per_gpu": max(self.tokens, longest), "temperature": 1.0}
        return tu.get_tensordict(tensors, settings)
