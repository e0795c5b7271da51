"""Training: `train(config) -> Run`; `replay(file)` of a batch that it skipped."""

from nrt.trainer.listener import Listener
from nrt.trainer.replay import replay
from nrt.trainer.start import train

__all__ = ["Listener", "replay", "train"]
