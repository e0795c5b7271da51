"""verl's trainer without its loop: worker groups, rollout servers and their weights, as three services.

`PPOTrainerSync` builds the cluster's parts. Its loop, data loader, replay buffer and rewards are not used: batches are made here, in
nrt's own order, and go to the workers directly.
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

from nrt.engine.verl.batch import score_batch, silent, tails_of, update_batch
from nrt.engine.verl.loss import worker_loss
from nrt.engine.verl.sampling import Ask, TraceLoops
from nrt.objective import Method, RowCredit
from nrt.types import Row, Sample


class NrtTrainer(PPOTrainerSync):
    """Samples, scores and updates; `tokens` is the most a worker forwards at once, a longer row counted alone."""

    def __init__(self, config: Any, method: Method, *, tokens: int) -> None:
        super().__init__(config)
        self.method, self.tokens = method, tokens
        self.curr_step_profile = False
        self.awake = False  # the servers hold weights, and they are the workers' current ones

    def _build_replay_buffer(self) -> None:
        """None is needed: samples come back as results."""

    def _init_dataloader(self) -> None:
        """Pairs come from nrt's stream."""

    def read(self, folder: Path) -> None:
        """What `save` wrote; each worker its part."""
        self.actor_rollout_wg.load_checkpoint(local_path=str(folder))

    def _setup(self) -> None:
        super()._setup()
        self.actor_rollout_wg.set_loss_fn(partial(worker_loss, method=self.method))
        self.loops = TraceLoops.create(config=self.config, llm_client=self.get_llm_client())
        dealt = self.actor_rollout_wg._query_dispatch_info("actor")
        self.actor_rollout_wg._dispatch_info["actor"] = dealt
        self.ranks = max(dealt) + 1  # data-parallel ones

    def on_init_end(self) -> None:
        """Servers stay asleep until somebody asks them."""

    def sample(self, asks: Sequence[Ask]) -> list[list[Sample]]:
        """Samples of the current weights."""
        if not self.awake:
            self.checkpoint_manager.update_weights(self.global_steps)  # wakes them up, too
            self.awake = True
        return self.loops.sample(asks)

    def score(self, rows: Sequence[Row], *, initial: bool) -> list[tuple[Tensor, Tensor]]:
        """(log-probabilities, entropies) of the rows' tails, in the order of the rows."""
        self.rest()
        filled, order = self._dealt(rows)
        tensors = score_batch(filled)
        batch = self._batch(tensors, filled, compute_loss=False, calculate_entropy=True)
        output = self.ref_policy_wg.compute_ref_log_prob(batch) if initial else self.actor_rollout_wg.compute_log_prob(batch)
        found = zip(tails_of(output["log_probs"], tensors["responses"]), tails_of(output["entropy"], tensors["responses"]), strict=True)
        by_place = dict(zip(order, found, strict=True))
        return [by_place[i] for i in range(len(rows))]

    def update(self, rows: Sequence[Row], credits: Sequence[RowCredit], *, denominator: float) -> dict[str, float]:
        """One optimiser update; verl's metrics of it, and the loss's."""
        self.rest()
        filled, order = self._dealt(rows)
        pairs = [(row, credits[i]) if i < len(rows) else silent(row) for row, i in zip(filled, order, strict=True)]
        batch = self._batch(
            update_batch(*zip(*pairs, strict=True)),
            filled,
            calculate_entropy=False,
            nrt_denominator=denominator,
            global_batch_size=len(filled),
            mini_batch_size=len(filled),
            epochs=1,
            dataloader_kwargs={"shuffle": False},
        )
        output = self.actor_rollout_wg.update_actor(batch)
        return reduce_metrics(tu.get(output, "metrics"))

    def save(self, folder: Path) -> None:
        """verl's checkpoint, each worker its part, and `folder/huggingface`, the whole model."""
        self.rest()
        self.actor_rollout_wg.save_checkpoint(str(folder), None, self.global_steps)

    def rest(self) -> None:
        """Servers give their weights and caches back."""
        if self.awake:
            self.checkpoint_manager.sleep_replicas()
            self.awake = False

    def _dealt(self, rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
        """The rows as ranks take them, like shares of tokens each, and the place that each had.

        A number of rows that the ranks do not divide is filled up with copies of the shortest; their places begin at len(rows).
        """
        shortest = min(rows, key=lambda row: len(row.ids))
        filled = [*rows, *[shortest] * (-len(rows) % self.ranks)]
        parts = get_seqlen_balanced_partitions([len(row.ids) for row in filled], k_partitions=self.ranks, equal_size=True)
        order = [i for part in parts for i in sorted(part)]
        return [filled[i] for i in order], order

    def _batch(self, tensors: dict[str, Tensor], rows: Sequence[Row], **settings: Any) -> Any:
        longest = max(len(row.ids) for row in rows)
        settings |= {"max_token_len_per_gpu": max(self.tokens, longest), "temperature": 1.0}
        return tu.get_tensordict(tensors, settings)
