"""The objective of Native Reasoning Training as pure functions of tensors. No model, no config, no input or output."""

from nrt.objective.advantage import group_advantage
from nrt.objective.credit import GroupCredit, RowCredit, Streams, group_credit, streams
from nrt.objective.loss import LossParts, nrt_loss
from nrt.objective.methods import METHODS, Method
from nrt.objective.rewards import REWARDS, Reward, WeightedSum, token_signal, with_weight_norm

__all__ = [
    "METHODS",
    "REWARDS",
    "GroupCredit",
    "LossParts",
    "Method",
    "Reward",
    "RowCredit",
    "Streams",
    "WeightedSum",
    "group_advantage",
    "group_credit",
    "nrt_loss",
    "streams",
    "token_signal",
    "with_weight_norm",
]
