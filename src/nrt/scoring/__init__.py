"""Scorers: rows of token ids → log-probability and entropy of each tail token."""

from nrt.scoring.logprobs import PaddedScorer, Scorer, micro_batches, score_all

__all__ = ["PaddedScorer", "Scorer", "micro_batches", "score_all"]
