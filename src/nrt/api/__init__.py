"""`nrt.train` and `nrt.resume` for Python: objects in place of files and names, live progress."""

from nrt.api.training import resume, train

__all__ = ["resume", "train"]
