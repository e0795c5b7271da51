"""Training: `train(config) -> Run`; `replay(file)` of a batch that it skipped."""

from nrt.training.loop import Listener
from nrt.training.replay import replay
from nrt.training.start import train

__all__ = ["Listener", "replay", "train"]
