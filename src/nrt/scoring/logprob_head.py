"""Head of a language model: log-probability and entropy of tokens from hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nrt.models import trained_row_parameters
from nrt.scoring.token_logprobs import GradientOf, TokenLogprobs


@dataclass(frozen=True)
class LMHead:
    """Map from hidden states to logits: softcap(scale · (h Wᵀ + b))."""

    weight_Vd: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    # Rows of the matrix by token id, if only these are trained (models/lora.py).
    row_by_token: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def from_model(cls, model: Any) -> LMHead:
        """Read the head of a Hugging Face causal LM.

        Uses its output embeddings, and the config settings that are known to change logits.
        """
        linear = model.get_output_embeddings()
        config = model.config.get_text_config()
        factor = float(getattr(config, "logit_scale", None) or 1.0)
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(
            weight_Vd=linear.weight,
            bias_V=getattr(linear, "bias", None),
            scale=factor / divisor,
            softcap=getattr(config, "final_logit_softcapping", None),
            row_by_token=trained_row_parameters(linear),
        )

    def __call__(
        self,
        hidden_Nd: Tensor,
        target_N: Tensor,
        gradient_of: GradientOf | None = None,
        banned_N: Tensor | None = None,
        temperature_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (log-probabilities, entropies) [N], float32, in nats.

        Only the log-probabilities have a gradient.

        Args:
            hidden_Nd: hidden states that predict the targets.
            target_N: ids of the tokens to score.
            gradient_of: the backward adds the gradient of the vocabulary matrix to this tensor and
                returns none to autograd. None: autograd receives it.
            banned_N: id of a token of probability 0 at each position, or −1.
            temperature_N: divides the logits of each position, float32; None: 1 everywhere.
        """
        settings = (self.scale, self.softcap, gradient_of, tuple(self.row_by_token))
        return TokenLogprobs.apply(
            hidden_Nd,
            self.weight_Vd,
            self.bias_V,
            target_N,
            banned_N,
            temperature_N,
            settings,
            *self.row_by_token.values(),
        )
