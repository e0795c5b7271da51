"""The packed scorer has the padded scorer's numbers and gradients for any groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import PreTrainedModel

from nrt.engine.meter import Meter
from nrt.errors import InputError
from nrt.scoring import (
    PackedScorer,
    PaddedScorer,
    choose_scorer,
    flex,
    prefix_attention,
    score_all,
    token_logprobs,
)
from nrt.scoring.flex import make_mask_mod
from nrt.scoring.logprob_head import LMHead
from nrt.scoring.packing import lay_out, packed_batches
from nrt.types import Row
from tests.tiny import ARCHITECTURES, PAD, random_rows, row, tiny_model

ORACLE = PaddedScorer(PAD)


def packed_model(architecture: str, **changes: Any) -> PreTrainedModel:
    model = tiny_model(architecture, **changes)
    assert isinstance(choose_scorer(model, PAD).scorer, PackedScorer), choose_scorer(model, PAD).why
    return model


def grouped(seed: int, groups: list[tuple[int, list[int]]]) -> list[Row]:
    """Return random rows of groups of (prompt length, tail lengths), each with its own prompt."""
    rows = []
    for g, (prompt, tails) in enumerate(groups):
        (shared,) = random_rows(seed + g, [(prompt, 1)])
        rows += [
            row(shared.prompt_ids, tail.tail_ids)
            for tail in random_rows(seed + 100 + g, [(1, t) for t in tails])
        ]
    return rows


GROUPS = [
    (9, [12, 1, 7]),
    (1, [3, 3]),
    (20, [2]),
    (4, [1, 1]),
]  # prompts, tails and both together exceed the window of 5
"""Groups with prompts of one token, with tails of one token, and with one row."""


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_scores(
    model: PreTrainedModel, rows: list[Row], scorer: PackedScorer | None = None
) -> None:
    scorer = scorer or PackedScorer()
    scores, expected = scorer(model, rows), ORACLE(model, rows)
    assert scores.lengths == expected.lengths
    torch.testing.assert_close(scores.logp_N, expected.logp_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.entropy_N, expected.entropy_N, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, len(scores.logp_N))
    ours, oracles = (
        gradients(model, scores.logp_N @ weights),
        gradients(model, expected.logp_N @ weights),
    )
    largest = max(g.abs().max().item() for g in oracles.values())
    assert ours.keys() == oracles.keys()
    for name, gradient in oracles.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * largest, rtol=0, msg=name)


OTHERS: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {},
    "cohere": {"logit_scale": 0.5},
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
def test_equals_the_oracle(architecture: str) -> None:
    assert_equal_scores(
        packed_model(architecture, **OTHERS.get(architecture, {})), grouped(1, GROUPS)
    )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.sampled_from(["llama", "mistral", "qwen3", "gemma3"]),
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_any_groups(architecture: str, groups: list[tuple[int, list[int]]], seed: int) -> None:
    assert_equal_scores(_model(architecture), grouped(seed, groups))


@cache
def _model(architecture: str) -> PreTrainedModel:
    return packed_model(architecture)


def test_longer_than_the_kernels_blocks() -> None:
    """The CPU's flash kernel has blocks of 32 to 256 queries and 512 keys."""
    model = packed_model("qwen2", max_position_embeddings=2048, initializer_range=0.1)
    assert_equal_scores(model, grouped(3, [(600, [300, 37]), (70, [140])]))


def test_scores_are_in_the_order_of_the_rows() -> None:
    model, rows = packed_model("llama"), grouped(2, GROUPS)
    mixed = [rows[i] for i in (6, 0, 4, 2, 7, 1, 5, 3)]
    assert_equal_scores(model, mixed)


def test_equal_rows_are_forwarded_once() -> None:
    """A trained policy repeats its traces. Each copy has its scores and its share of the gradient."""
    model, rows = packed_model("llama"), grouped(2, GROUPS)
    repeated = [rows[i] for i in (0, 1, 0, 0, 3, 1, 6)]
    forwarded = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: forwarded.append(inputs[0].numel())
    )
    PackedScorer()(model, repeated)
    PackedScorer()(model, [rows[i] for i in (0, 1, 3, 6)])
    hook.remove()
    assert forwarded[0] == forwarded[1]
    assert_equal_scores(model, repeated)


@pytest.mark.parametrize("tokens_per_batch", [1, 20, 40, 10_000])
def test_scores_do_not_depend_on_the_batches(tokens_per_batch: int) -> None:
    model, rows = packed_model("mistral"), grouped(4, GROUPS)
    scores = score_all(PackedScorer(), model, rows, tokens_per_batch)
    torch.testing.assert_close(
        scores.logp_N, ORACLE(model, rows).logp_N.detach(), atol=1e-5, rtol=1e-5
    )


def test_batches_by_hand() -> None:
    """A group forwards its prompt and all but one token of each tail: 5 + 3 + 3 = 11, 4 + 1 = 5 and 2 + 5 = 7 tokens."""
    rows = grouped(0, [(4, [2]), (5, [4, 4]), (2, [6])])
    assert packed_batches(rows, 23) == [[1, 2, 3, 0]]
    assert packed_batches(rows, 12) == [[1, 2], [3, 0]]
    assert packed_batches(rows, 8) == [
        [1],
        [2],
        [3],
        [0],
    ]  # the group of 11 is split, its prompt forwarded twice
    assert packed_batches(rows, 1) == [[1], [2], [3], [0]]
    assert packed_batches([], 12) == []


def test_layout_by_hand() -> None:
    rows = [row([5, 6, 7], [1, 2, 3]), row([8], [4]), row([5, 6, 7], [9, 10])]
    layout = lay_out(rows)
    assert layout.ids_F.tolist() == [5, 6, 7, 1, 2, 9, 8]
    assert layout.positions_F.tolist() == [0, 1, 2, 3, 4, 3, 0]
    assert [(g.prompt, g.tails) for g in layout.groups] == [
        ((0, 3), ((3, 5), (5, 6))),
        ((6, 7), ()),
    ]
    assert layout.predictor_N.tolist() == [2, 3, 4, 6, 2, 5]
    assert layout.target_N.tolist() == [1, 2, 3, 4, 9, 10]
    assert layout.longest == 5


@pytest.mark.parametrize("window", [None, 4])
def test_flex_mask_equals_the_masks_of_single_rows(window: int | None) -> None:
    """Place each row's own causal mask, with the window, at its tokens' positions in the layout."""
    rows = grouped(0, GROUPS)
    layout = lay_out(rows)
    N = len(layout.ids_F)
    expected = torch.zeros(N, N, dtype=torch.bool)
    for group in layout.groups:
        for start, stop in group.tails or [(0, 0)]:
            tokens = [*range(*group.prompt), *range(start, stop)]
            for i, query in enumerate(tokens):
                expected[query, tokens[max(0, i + 1 - (window or N)) : i + 1]] = True
    index_N = torch.arange(N)
    zero = torch.tensor(0)
    mask_mod = make_mask_mod(layout, window, torch.device("cpu"))
    assert torch.equal(mask_mod(zero, zero, index_N[:, None], index_N[None]), expected)


@pytest.mark.parametrize("window", [None, 5, 100, 300])
@pytest.mark.parametrize(
    "groups",
    [GROUPS, [(128, [128])], [(300, [200, 7, 90]), (1, [1]), (40, [100] * 6)]],
    ids=["short", "whole blocks", "long"],
)
def test_block_mask_is_what_torch_would_make(
    groups: list[tuple[int, list[int]]], window: int | None
) -> None:
    layout, cpu = lay_out(grouped(3, groups)), torch.device("cpu")
    ours = flex.make_block_mask(layout, window, cpu)
    mask_mod, N = make_mask_mod(layout, window, cpu), len(layout.ids_F)
    theirs = create_block_mask(mask_mod, None, None, N, N, device=cpu)
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for name in TENSORS_OF_A_BLOCK_MASK:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


TENSORS_OF_A_BLOCK_MASK = [
    f"{full}{name}"
    for full in ("", "full_")
    for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")
]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """FlexAttention on the CPU, compiled as on a GPU but for the kernels, whose backward it lacks.

    Returns the graphs that were compiled.
    """
    graphs: list[object] = []

    def record(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(flex_module, "_validate_device", lambda *qkv: None)
    monkeypatch.setattr(prefix_attention, "FLEX_DEVICES", ("cpu",))
    monkeypatch.setattr(flex, "_compiled", [])
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own code while it is traced
def test_flex_attention_is_compiled_once_for_all_shapes(compilations: list[object]) -> None:
    """With gradient, softcap, windows and grouped heads; a graph break would raise."""
    for architecture in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"):
        model = packed_model(architecture)
        before = len(compilations)
        for seed, groups in enumerate(([(150, [100, 90])], [(200, [30]), (7, [60, 80])])):
            rows = grouped(seed, groups)
            assert_equal_scores(model, rows)
            with torch.no_grad():
                PackedScorer()(model, rows)
        assert len(compilations) - before <= 4, architecture
    assert 1 < len(compilations) <= 16


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiler_that_fails_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(flex_module, "_validate_device", lambda *qkv: None)
    monkeypatch.setattr(prefix_attention, "FLEX_DEVICES", ("cpu",))
    monkeypatch.setattr(flex, "_compiled", [])
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    choice = choose_scorer(tiny_model("llama"), PAD)
    assert choice.surprising, "a warning of the run"
    assert "FlexAttention cannot be compiled for it here" in choice.why
    assert "Failed to find C compiler" in choice.why
    assert "install it (such as gcc)" in choice.why
    assert isinstance(choice.scorer, PaddedScorer)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_flex_attention_uncompiled(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's attention without its compiled kernel; on the CPU it has only a forward."""
    model, rows = packed_model(architecture), grouped(11, GROUPS)
    monkeypatch.setattr(flex, "_compiled", [flex_attention])
    monkeypatch.setattr(prefix_attention, "FLEX_DEVICES", ("cpu",))
    with torch.no_grad():
        scores = PackedScorer()(model, rows)
    torch.testing.assert_close(
        scores.logp_N, ORACLE(model, rows).logp_N.detach(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("tile", [1, 64, 300, 2**18])
@pytest.mark.parametrize("architecture", ["gemma2", "cohere", "gpt2"])
def test_tiles_of_any_size(architecture: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softcaps, scales and tied embeddings, with the vocabulary of 41 in one part or several."""
    monkeypatch.setattr("nrt.scoring.token_logprobs.TILE", {"cpu": tile, "cuda": tile})
    monkeypatch.setattr("nrt.scoring.token_logprobs.TILE_TOKENS", {"cpu": 3, "cuda": 3})
    assert_equal_scores(packed_model(architecture), grouped(5, GROUPS))


def test_tiles_of_a_gpu_write_little_more_than_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the meta device, with the vocabulary of Llama 3. Rows of tiles are long: each adds
    a float32 product of the matrix's size to its gradient.
    """
    for sizes in (token_logprobs.TILE, token_logprobs.TILE_TOKENS):
        monkeypatch.delitem(sizes, "meta", raising=False)  # what `nrt plan` counted last
    N, d, V = 8192, 3072, 128_258
    hidden_Nd, weight_Vd = (
        torch.empty(n, d, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (N, V)
    )
    gradient_Vd = torch.empty(V, d, device="meta")
    target_N = torch.empty(N, device="meta", dtype=torch.int64)
    with Meter() as meter:
        head = LMHead(weight_Vd, None, 1.0, None)
        logp_N, _ = head(hidden_Nd, target_N, lambda _: gradient_Vd)
        logp_N.sum().backward()
    # logits, their exponentials and logits again in float32, d_logits in bfloat16 twice
    assert meter.made < 1.3 * (3 * 4 + 2 * 2) * N * V
    assert meter.peak < 0.1 * 4 * N * V


def test_head_with_a_bias_equals_full_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((6, 5), (11, 5), (11,))
    )
    target = torch.tensor([0, 10, 3, 3, 7, 1])
    logp, entropy = LMHead(weight, bias, 0.7, 3.0)(hidden, target)
    full_logp = (3 * torch.tanh(0.7 * (hidden @ weight.T + bias) / 3)).log_softmax(-1)
    torch.testing.assert_close(logp, full_logp[torch.arange(6), target])
    torch.testing.assert_close(entropy, -(full_logp.exp() * full_logp).sum(-1).detach())
    coefficients = torch.linspace(-1, 2, 6)
    ours = torch.autograd.grad(logp @ coefficients, (hidden, weight, bias))
    theirs = torch.autograd.grad(
        full_logp[torch.arange(6), target] @ coefficients, (hidden, weight, bias)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied-mha", "gemma3"])
def test_vocabulary_gradients_in_place(architecture: str) -> None:
    """The gradient is added to the existing one, for tied and untied embeddings."""
    model, rows = packed_model(architecture), grouped(6, GROUPS)
    gradients(model, ORACLE(model, rows).logp_N.sum())
    expected = {name: 2 * p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    def gradient_of(parameter: Tensor) -> Tensor:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    for _ in range(2):
        PackedScorer(gradient_of)(model, rows).logp_N.sum().backward()
    largest = max(g.abs().max().item() for g in expected.values())
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.layout == torch.strided
        torch.testing.assert_close(p.grad, expected[name], atol=1e-5 * largest, rtol=0, msg=name)


def test_a_frozen_head_gets_no_gradient() -> None:
    model, rows = packed_model("llama"), grouped(7, GROUPS)
    model.get_output_embeddings().weight.requires_grad_(False)
    assert "lm_head.weight" not in gradients(model, PackedScorer()(model, rows).logp_N.sum())


def test_bfloat16_is_close_to_float32() -> None:
    model, rows = packed_model("llama", initializer_range=0.1), grouped(8, GROUPS)
    expected = ORACLE(model, rows)
    scores = PackedScorer()(model.bfloat16(), rows)
    assert scores.logp_N.dtype == torch.float32
    torch.testing.assert_close(scores.logp_N, expected.logp_N, atol=0.03, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_other_forwards_of_the_model_are_unchanged(architecture: str) -> None:
    rows = grouped(9, GROUPS)
    expected, scores = (
        ORACLE(tiny_model(architecture), rows),
        ORACLE(packed_model(architecture), rows),
    )
    torch.testing.assert_close(scores.logp_N, expected.logp_N, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("qwen3_next", "linear_attention"),
        ("gpt_oss", "sinks"),
        ("llama4_text", "chunked"),
        ("bloom", "replaced"),
    ],
)
def test_models_that_cannot_share_prompts_are_padded(architecture: str, why: str) -> None:
    model = tiny_model(architecture)
    implementation = model.config._attn_implementation
    choice = choose_scorer(model, PAD)
    assert isinstance(choice.scorer, PaddedScorer)
    assert why in choice.why
    assert model.config._attn_implementation == implementation


def test_the_attention_is_not_saved_with_the_model(tmp_path: Path) -> None:
    packed_model("llama").save_pretrained(tmp_path)
    assert "nrt" not in (tmp_path / "config.json").read_text()


def test_rows_need_a_prompt_and_a_tail() -> None:
    model = packed_model("llama")
    for bad in (row([], [5]), row([5], [])):
        with pytest.raises(InputError, match="prompt"):
            PackedScorer()(model, [bad])
