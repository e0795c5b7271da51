"""Training: `train(config) -> Run`."""

from nrt.train.loop import Listener, train

__all__ = ["Listener", "train"]
