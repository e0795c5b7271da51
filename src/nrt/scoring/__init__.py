"""Scorers: rows of token ids → log-probability and entropy of each tail token."""

from nrt.scoring.logprobs import PaddedScorer, Scorer, micro_batches, score_all
from nrt.scoring.packed import Choice, PackedScorer, choose_scorer, same_choice

__all__ = ["Choice", "PackedScorer", "PaddedScorer", "Scorer", "choose_scorer", "micro_batches", "same_choice", "score_all"]
