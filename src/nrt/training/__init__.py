"""Training: `train(config) -> Run`; `replay(file)` of a batch that it skipped."""

from nrt.training.loop import Listener, train
from nrt.training.replay import replay

__all__ = ["Listener", "replay", "train"]
