"""Objective of Native Reasoning Training: pure functions of tensors.

This package imports no model and no config, and it reads and writes no files.
"""

from nrt.objective.advantage import NOISE, group_advantage
from nrt.objective.credit import GroupCredit, RowCredit, Streams, group_credit, streams
from nrt.objective.importance import Mismatch, mismatch, truncated_importance
from nrt.objective.loss import LossParts, nrt_loss
from nrt.objective.method_state import LearnedWeights, ScoredGroup, StateRule, StdFilter
from nrt.objective.methods import METHODS, NOT_OFFERED, Method, TraceReference, mixed
from nrt.objective.reward_shaping import GroupFacts
from nrt.objective.rewards import REWARDS, Mix, Reward, WeightedSum, token_signal, with_weight_norm

__all__ = [
    "METHODS",
    "NOISE",
    "NOT_OFFERED",
    "REWARDS",
    "GroupCredit",
    "GroupFacts",
    "LearnedWeights",
    "LossParts",
    "Method",
    "Mismatch",
    "Mix",
    "Reward",
    "RowCredit",
    "ScoredGroup",
    "StateRule",
    "StdFilter",
    "Streams",
    "TraceReference",
    "WeightedSum",
    "group_advantage",
    "group_credit",
    "mismatch",
    "mixed",
    "nrt_loss",
    "streams",
    "token_signal",
    "truncated_importance",
    "with_weight_norm",
]
