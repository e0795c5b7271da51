"""Training: `train(config) -> Run`, callbacks, and `replay(file)` of a batch that it skipped."""

from nrt.trainer.callbacks import Callback, Control
from nrt.trainer.early_stopping import EarlyStopping
from nrt.trainer.listener import Listener
from nrt.trainer.replay import replay
from nrt.trainer.start import train

__all__ = ["Callback", "Control", "EarlyStopping", "Listener", "replay", "train"]
