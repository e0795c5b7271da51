"""The real model of the tests: `python -m tests.real.model` makes its folder once and prints where it is.

It is the packaged SmolLM2-135M-Instruct with its own chat template; nothing of it is committed.
"""

from pathlib import Path

from nrt.lab.pretrained import smollm2_folder


def smollm2() -> Path:
    """Return the folder."""
    return smollm2_folder(plain=False)


if __name__ == "__main__":
    print(smollm2())
