"""The objective of Native Reasoning Training as pure functions of tensors. No model, no config, no input or output."""

from nrt.objective.advantage import NOISE, group_advantage
from nrt.objective.credit import GroupCredit, RowCredit, Streams, group_credit, streams
from nrt.objective.loss import LossParts, nrt_loss
from nrt.objective.memory import LearnedWeights, Memory, Scored, StdFilter
from nrt.objective.methods import METHODS, Method, mixed
from nrt.objective.mismatch import Mismatch, mismatch, truncated_importance
from nrt.objective.rewards import REWARDS, Mix, Reward, WeightedSum, token_signal, with_weight_norm
from nrt.objective.shapes import Facts

__all__ = [
    "METHODS",
    "NOISE",
    "REWARDS",
    "Facts",
    "GroupCredit",
    "LearnedWeights",
    "LossParts",
    "Memory",
    "Method",
    "Mismatch",
    "Mix",
    "Reward",
    "RowCredit",
    "Scored",
    "StdFilter",
    "Streams",
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
