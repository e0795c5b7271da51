"""Scorers: rows of token ids → log-probability and entropy of each tail token."""

from nrt.scoring.base import Scorer, score_all
from nrt.scoring.choice import ScorerChoice, choose_scorer, same_choice
from nrt.scoring.packed import PackedScorer
from nrt.scoring.padded import PaddedScorer, micro_batches

__all__ = [
    "PackedScorer",
    "PaddedScorer",
    "Scorer",
    "ScorerChoice",
    "choose_scorer",
    "micro_batches",
    "same_choice",
    "score_all",
]
