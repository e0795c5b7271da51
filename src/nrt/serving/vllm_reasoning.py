"""Reasoning parser for vLLM: text before END is the reasoning, text after END the content.

Needs vLLM, not nrt:

    vllm serve DIR --reasoning-parser-plugin DIR/vllm_reasoning.py --reasoning-parser nrt

The exported chat template opens the trace, because it ends the prompt with START. So a reply begins
inside the trace. A request with `chat_template_kwargs={"open_trace": false}` opens no trace: its
reply is content, unless the model opens a trace itself. A trace without END has no content.

`nrt export` writes the run's markers into this file. Written for vLLM 0.31 and 0.32.
"""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage  # pyright: ignore[reportMissingImports]
from vllm.reasoning import ReasoningParserManager  # pyright: ignore[reportMissingImports]
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser  # pyright: ignore[reportMissingImports]


@ReasoningParserManager.register_module("nrt")
class NRTReasoningParser(BaseThinkingReasoningParser):
    """Parser of the reply to one request."""

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self.opened = (kwargs.get("chat_template_kwargs") or {}).get("open_trace", True)

    @property
    def start_token(self) -> str:
        return "<|think_start|>"

    @property
    def end_token(self) -> str:
        return "<|think_end|>"

    def adjust_request(self, request: Any) -> Any:
        """Keep special tokens in the text, since the markers are special tokens."""
        request.skip_special_tokens = False
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return (reasoning, content) of a complete reply."""
        if not self.opened and self.start_token not in model_output:
            return None, model_output or None
        trace, _, answer = model_output.removeprefix(self.start_token).partition(self.end_token)
        return trace or None, answer or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Return the reasoning and content in the new tokens; None if there is nothing to show."""
        in_trace = self.opened or self.start_token_id in current_token_ids
        if not in_trace or self.end_token_id in previous_token_ids:
            return DeltaMessage(content=delta_text) if delta_text else None
        trace, end, answer = delta_text.replace(self.start_token, "").partition(self.end_token)
        if trace or (end and answer):
            return DeltaMessage(reasoning=trace or None, content=answer or None)
        return None
