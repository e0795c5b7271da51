"""Training: `train(config) -> Run`."""

from nrt.training.loop import Listener, train

__all__ = ["Listener", "train"]
