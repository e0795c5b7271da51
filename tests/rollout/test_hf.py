"""The sampler against the scorer, against `generate`, and against the distribution it reports."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from nrt.errors import InputError
from nrt.models.attention import has_installed_attention, install_attention
from nrt.models.forward import cache_argument
from nrt.rollout import HFSampler, Request, Sampler
from nrt.rollout.drawing import distribution
from nrt.scoring import PaddedScorer, choose_scorer
from nrt.types import Sample
from tests.tiny import ARCHITECTURES, EOS, PAD, VOCAB, hostile, random_rows, row, tiny_model

SHARED = pytest.mark.parametrize("shared", [False, True], ids=["copied", "shared"])
"""Traces share their prompt's keys and values, or each trace has a copy."""
NEVER: frozenset[int] = frozenset()
PROMPTS = [
    r.prompt_ids for r in random_rows(0, [(4, 1), (1, 1), (9, 1)])
]  # different lengths, one of a single token


def sampling_model(architecture: str = "llama", *, shared: bool, **changes: Any) -> PreTrainedModel:
    model = tiny_model(architecture, **changes)
    if shared:
        install_attention(model)
    return model


def flat(samples: list[list[Sample]]) -> list[Sample]:
    return list(chain.from_iterable(samples))


def ids_of(samples: list[list[Sample]]) -> list[tuple[int, ...]]:
    return [sample.ids for sample in flat(samples)]


@SHARED
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_are_the_scorers(architecture: str, shared: bool) -> None:
    """Prefill, cache, windows and softcaps give the trained distribution; generation_config has no effect."""
    model = hostile(sampling_model(architecture, shared=shared))
    samples = HFSampler(model, PAD).sample(
        Request(PROMPTS, n=3, stop_ids=frozenset({EOS, 5}), cap=20, seed=1)
    )
    rows = [
        row(prompt, sample.ids)
        for prompt, group in zip(PROMPTS, samples, strict=True)
        for sample in group
    ]
    scores = PaddedScorer(PAD)(model, rows).logp_N
    sampled = torch.tensor(list(chain.from_iterable(sample.logps for sample in flat(samples))))
    torch.testing.assert_close(sampled, scores.detach(), atol=1e-4, rtol=0)
    assert any(len(sample.ids) > 5 for sample in flat(samples))  # longer than the windows


def test_each_token_has_a_logp_and_all_tokens_occur() -> None:
    model = tiny_model(initializer_range=0.02)  # nearly uniform
    samples = flat(
        HFSampler(model, PAD).sample(Request([(3, 4)], n=100, stop_ids=NEVER, cap=20, seed=0))
    )
    assert all(len(sample.ids) == len(sample.logps) == 20 for sample in samples)
    assert {i for sample in samples for i in sample.ids} == set(range(VOCAB))


@SHARED
def test_first_tokens_follow_the_softmax(shared: bool) -> None:
    """χ² of 20,000 draws, over the tokens with an expected count of 5 or more.

    The 1e-4 quantile for 40 degrees of freedom is 83.
    """
    model, n = sampling_model(shared=shared, initializer_range=0.2), 20_000
    samples = flat(
        HFSampler(model, PAD, max_rows=n).sample(
            Request([(3, 4, 5)], n=n, stop_ids=NEVER, cap=1, seed=0)
        )
    )
    probabilities = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1].softmax(-1)
    expected = n * probabilities.detach()
    counts = torch.bincount(torch.tensor([sample.ids[0] for sample in samples]), minlength=VOCAB)
    usual = expected >= 5
    assert usual.sum() > 10
    assert ((counts - expected)[usual] ** 2 / expected[usual]).sum() < 83


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    model = tiny_model()
    model.get_output_embeddings().weight.data.mul_(300)  # most probabilities underflow
    samples = flat(
        HFSampler(model, PAD).sample(Request([(3,)], n=64, stop_ids=NEVER, cap=5, seed=0))
    )
    assert min(chain.from_iterable(sample.logps for sample in samples)) > -40


def test_temperature_and_top_p_by_hand() -> None:
    """The first two of .5, .3, .15, .05 have .8 of the probability, the first three .95.

    At temperature one half, odds of 2 become 4.
    """
    request = Request([(3,)], n=1, stop_ids=NEVER, cap=1, seed=0)
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    distributions = [
        distribution(logits, replace(request, top_p=top_p)).exp()[0].tolist()
        for top_p in (1.0, 0.9, 0.79, 0.01)
    ]
    assert distributions[0] == pytest.approx([0.15, 0.5, 0.05, 0.3])
    assert distributions[1] == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95])
    assert distributions[2] == pytest.approx([0, 0.625, 0, 0.375])
    assert distributions[3] == pytest.approx([0, 1, 0, 0])
    odds = (
        distribution(torch.tensor([[2.0, 1.0]]).log(), replace(request, temperature=0.5))
        .exp()[0]
        .tolist()
    )
    assert odds == pytest.approx([0.8, 0.2])


def test_with_one_seed_per_prompt_samples_do_not_depend_on_other_prompts() -> None:
    sampler = HFSampler(tiny_model(), PAD)
    both = sampler.sample(Request(PROMPTS[:2], n=2, stop_ids=NEVER, cap=10, seed=(5, 9)))
    singly = [
        sampler.sample(Request([prompt], n=2, stop_ids=NEVER, cap=10, seed=(seed,)))[0]
        for prompt, seed in zip(PROMPTS[:2], (5, 9), strict=True)
    ]
    assert ids_of(both) == ids_of(singly)
    with pytest.raises(InputError, match="1 seeds for 2 prompts"):
        sampler.sample(Request(PROMPTS[:2], n=2, stop_ids=NEVER, cap=10, seed=(5,)))


@SHARED
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3", "qwen3"])
def test_greedy_equals_generate(architecture: str, shared: bool) -> None:
    model = sampling_model(architecture, shared=shared)
    samples = HFSampler(model, PAD).sample(
        Request(PROMPTS, n=1, stop_ids=frozenset({EOS}), cap=15, seed=0, greedy=True)
    )
    for prompt, sample in zip(PROMPTS, ids_of(samples), strict=True):
        ids = torch.tensor([prompt])
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=15,
            eos_token_id=EOS,
        )
        assert generated[0, len(prompt) :].tolist() == list(sample)


@SHARED
def test_same_seed_gives_the_same_ids_and_changes_no_other_state(shared: bool) -> None:
    model = sampling_model(shared=shared).train()
    sampler: Sampler = HFSampler(model, PAD)
    random_state = torch.get_rng_state()
    first, again, other = (
        sampler.sample(Request(PROMPTS, n=4, stop_ids=frozenset({EOS}), cap=12, seed=seed))
        for seed in (7, 7, 8)
    )
    assert first == again
    assert ids_of(first) != ids_of(other)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@SHARED
@pytest.mark.parametrize("max_rows", [1, 5])
def test_max_rows_does_not_change_samples(max_rows: int, shared: bool) -> None:
    model = sampling_model("gemma3", shared=shared, initializer_range=0.05)
    stop_ids = frozenset(range(2, 8))  # so rows finish at different times and leave the batch
    together = HFSampler(model, PAD).sample(
        Request(PROMPTS, n=4, stop_ids=stop_ids, cap=12, seed=3)
    )
    split = HFSampler(model, PAD, max_rows=max_rows).sample(
        Request(PROMPTS, n=4, stop_ids=stop_ids, cap=12, seed=3)
    )
    assert ids_of(together) == ids_of(split)
    assert len({len(ids) for ids in ids_of(together)}) > 2


@SHARED
def test_out_of_memory_halves_the_rows_and_keeps_the_samples(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for three rows: 12 rows fail, then 6 do, then all are decoded in threes. A batch that
    is short because of its prompts is only cut.
    """
    model = sampling_model("llama", shared=shared, initializer_range=0.05)
    request = Request(PROMPTS[:3], n=4, stop_ids=frozenset({5}), cap=6, seed=3)
    together = HFSampler(model, PAD).sample(request)
    forward = model.forward

    def small(*arguments: Any, **keywords: Any) -> Any:
        if len(keywords["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*arguments, **keywords)

    monkeypatch.setattr(model, "forward", small)
    messages: list[str] = []
    short = HFSampler(model, PAD, warn=messages.append)
    with monkeypatch.context() as patch:
        patch.setattr("nrt.rollout.hf.MAX_PREFILL", 1)  # four rows of one prompt
        assert ids_of(short.sample(request)) == ids_of(together)
    assert (short.max_rows, messages) == (512, [])
    sampler = HFSampler(model, PAD, warn=messages.append)
    assert ids_of(sampler.sample(request)) == ids_of(together)
    assert sampler.max_rows == 3
    assert [message.split(" from")[0] for message in messages] == [
        f"out of memory while sampling: sampler_rows is {rows}" for rows in (6, 3)
    ]
    assert ids_of(sampler.sample(request)) == ids_of(together)
    assert len(messages) == 2
    monkeypatch.setattr(model, "forward", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        sampler.sample(request)


def _out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@SHARED
def test_prompts_are_prefilled_in_parts(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of nine tokens at most fit into 20 tokens; a longer one is alone."""
    model = sampling_model("gemma3", shared=shared, initializer_range=0.05)
    prompts = [tuple(range(3, 3 + length)) for length in (9, 4, 30, 8, 9)]
    request = Request([*prompts, *prompts], n=2, stop_ids=frozenset({5}), cap=6, seed=3)
    together = HFSampler(model, PAD).sample(request)
    monkeypatch.setattr("nrt.rollout.hf.MAX_PREFILL", 20)
    forwarded = []
    forward = model.forward

    def record(*arguments: Any, **keywords: Any) -> Any:
        forwarded.append(keywords["input_ids"].shape)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(model, "forward", record)
    assert ids_of(HFSampler(model, PAD).sample(request)) == ids_of(together)
    prefills = [shape for shape in forwarded if shape[1] > 1]
    assert sorted(map(tuple, prefills)) == [(1, 9), (1, 30), (2, 8)]


@SHARED
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("greedy", [False, True])
def test_what_prompts_have_in_common_changes_no_sample(
    architecture: str, shared: bool, greedy: bool
) -> None:
    """Rests of 0 to 5 tokens are read one by one, stop ids in them too, and rows leave early."""
    model = sampling_model(architecture, shared=shared, initializer_range=0.05)
    stop_ids = frozenset({EOS, 5, 6, 7})
    common = (3, 4, 8, 9)
    rests = [(), (5, 10), (11,), (12, 5, 13, 14, 15), (10, 10, 10)]
    prompts = [common + rest for rest in rests] + [(20, 21, 22), (20, 21, 23)]
    request = Request(prompts, n=3, stop_ids=stop_ids, cap=9, seed=5, greedy=greedy)
    sampler = HFSampler(model, PAD)
    forwarded_whole = sampler.sample(request)
    shared_request = replace(request, prefix_lengths=[4, 4, 4, 4, 4, 2, 2])
    read = sampler.sample(shared_request)
    in_parts = HFSampler(model, PAD, max_rows=4).sample(shared_request)
    assert ids_of(in_parts) == ids_of(read)
    some = sampler.sample(replace(shared_request, only=[1, 5]))
    assert ids_of(some) == ids_of([read[1], read[5]])
    assert ids_of(forwarded_whole) == ids_of(read)
    assert greedy or len({len(ids) for ids in ids_of(read)}) > 2
    for a, b in zip(flat(forwarded_whole), flat(read), strict=True):
        torch.testing.assert_close(torch.tensor(a.logps), torch.tensor(b.logps), atol=1e-4, rtol=0)


def test_a_long_rest_is_forwarded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sampling_model(shared=True)
    calls = []
    monkeypatch.setattr(model, "forward", counting(model.forward, calls))
    request = Request(
        [(3, 4, *[8] * 70), (3, 4, 9)], 1, NEVER, cap=2, seed=0, prefix_lengths=[2, 2]
    )
    HFSampler(model, PAD).sample(request)
    assert len(calls) == 3, "the prompts, the other rest of one token, and one sampled token"


def counting(function: Any, calls: list[int]) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return function(*arguments, **keywords)

    return call


def test_equal_prompts_get_different_traces() -> None:
    samples = HFSampler(tiny_model(initializer_range=0.02), PAD).sample(
        Request([(3, 4), (3, 4)], n=2, stop_ids=NEVER, cap=8, seed=0)
    )
    assert len(set(ids_of(samples))) == 4


@SHARED
def test_each_stop_id_ends_a_sample_and_stays_in_it(shared: bool) -> None:
    model = sampling_model(shared=shared, initializer_range=0.02)
    stop_ids = frozenset({2, 9, 30, VOCAB + 5})  # the last is no token of the model
    samples = flat(
        HFSampler(model, PAD).sample(Request([(3, 4)], n=200, stop_ids=stop_ids, cap=30, seed=0))
    )
    stopped = [list(sample.ids) for sample in samples if len(sample.ids) < 30]
    assert {ids[-1] for ids in stopped} == {2, 9, 30}
    assert all(stop_ids.isdisjoint(ids[:-1]) for ids in stopped)
    for sample in samples:
        assert len(sample.ids) == len(sample.logps)


def test_all_rows_stop_at_once() -> None:
    samples = flat(
        HFSampler(tiny_model(), PAD).sample(
            Request(PROMPTS, n=3, stop_ids=frozenset(range(VOCAB)), cap=30, seed=0)
        )
    )
    assert [len(sample.ids) for sample in samples] == [1] * 9


def test_cap_of_one() -> None:
    samples = HFSampler(tiny_model(), PAD).sample(
        Request(PROMPTS, n=1, stop_ids=NEVER, cap=1, seed=0)
    )
    assert [len(group) for group in samples] == [1, 1, 1]
    assert all(len(sample.ids) == 1 for sample in flat(samples))


@SHARED
def test_samples_longer_than_the_first_buffer(shared: bool) -> None:
    model = sampling_model("mistral", shared=shared)
    sample = flat(
        HFSampler(model, PAD).sample(Request([(3, 4)], n=1, stop_ids=NEVER, cap=120, seed=0))
    )[0]
    scores = PaddedScorer(PAD)(model, [row((3, 4), sample.ids)]).logp_N
    torch.testing.assert_close(torch.tensor(sample.logps), scores.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_and_copied_caches_give_the_same_traces(architecture: str) -> None:
    """Also with groups that become unequal as rows leave, prompts without rows, and equal prompts."""
    prompts, stop_ids = [*PROMPTS, PROMPTS[0]], frozenset(range(2, 10))
    copied, shared = (
        HFSampler(sampling_model(architecture, shared=shared, initializer_range=0.1), PAD).sample(
            Request(prompts, n=5, stop_ids=stop_ids, cap=80, seed=4)
        )
        for shared in (False, True)
    )
    assert ids_of(copied) == ids_of(shared)
    lengths = [len(ids) for ids in ids_of(shared)]
    assert len(set(lengths)) > 4
    logps = [
        torch.tensor([logp for sample in flat(samples) for logp in sample.logps])
        for samples in (copied, shared)
    ]
    torch.testing.assert_close(*logps, atol=1e-5, rtol=1e-5)


def test_shared_prompts_in_bfloat16() -> None:
    model = sampling_model("qwen2", shared=True, initializer_range=0.1).bfloat16()
    samples = HFSampler(model, PAD).sample(
        Request(PROMPTS, n=3, stop_ids=frozenset({EOS}), cap=20, seed=1)
    )
    rows = [
        row(prompt, sample.ids)
        for prompt, group in zip(PROMPTS, samples, strict=True)
        for sample in group
    ]
    sampled = torch.tensor(list(chain.from_iterable(sample.logps for sample in flat(samples))))
    torch.testing.assert_close(
        sampled, PaddedScorer(PAD)(model, rows).logp_N.detach(), atol=0.05, rtol=0
    )


RECURRENT: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
"""Models with attention layers and layers with a recurrent state."""


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [*RECURRENT.items(), ("diffllama", {})],
    ids=[*RECURRENT, "diffllama"],
)
def test_models_that_cannot_share_get_copies(architecture: str, changes: dict[str, Any]) -> None:
    """DiffLlama's layers attend twice, to different values."""
    model = tiny_model(architecture, initializer_range=0.1, **changes)
    choose_scorer(model, PAD)
    assert not has_installed_attention(model)
    check_against_the_scorer(model)


def check_against_the_scorer(model: Any) -> None:
    """Log-probabilities of sampled tokens are the padded scorer's; the prompts need pads."""
    samples = HFSampler(model, PAD).sample(
        Request(PROMPTS, n=3, stop_ids=frozenset({EOS, 5}), cap=12, seed=1)
    )
    rows = [
        row(prompt, sample.ids)
        for prompt, group in zip(PROMPTS, samples, strict=True)
        for sample in group
    ]
    sampled = torch.tensor(list(chain.from_iterable(sample.logps for sample in flat(samples))))
    torch.testing.assert_close(
        sampled, PaddedScorer(PAD)(model, rows).logp_N.detach(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("architecture", "changes"), [("mamba", {}), ("recurrent_gemma", {"num_hidden_layers": 3})]
)
def test_a_state_outside_the_cache_is_an_error(architecture: str, changes: dict[str, Any]) -> None:
    """From transformers 5.24 on, Mamba keeps its state in the cache; then it must be exact."""
    model = tiny_model(architecture, initializer_range=0.1, **changes)
    if cache_argument(model) is not None and architecture == "mamba":
        check_against_the_scorer(model)
        return
    with pytest.raises(InputError, match="does not keep its state"):
        HFSampler(model, PAD).sample(Request(PROMPTS, n=2, stop_ids=NEVER, cap=3, seed=0))


class SynchronizationCounter(TorchDispatchMode):
    """Counts the operations at which the host waits for its device."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_host_waits_only_to_see_which_rows_still_run(architecture: str) -> None:
    """Once a token on the CPU, where it is free; elsewhere once in `LOOK_EVERY`."""
    model = sampling_model(architecture, shared=True, initializer_range=0.02)
    counts = []
    for cap in (10, 30):
        with SynchronizationCounter() as counter:
            HFSampler(model, PAD).sample(
                Request(PROMPTS, n=4, stop_ids=frozenset({VOCAB}), cap=cap, seed=0)
            )
        counts.append(counter.count)
    assert counts[1] - counts[0] == 20


def test_no_prompts_and_empty_prompts() -> None:
    sampler = HFSampler(tiny_model(), PAD)
    assert sampler.sample(Request([], n=2, stop_ids=NEVER, cap=5, seed=0)) == []
    with pytest.raises(InputError, match="BOS"):
        sampler.sample(Request([(3,), ()], n=2, stop_ids=NEVER, cap=5, seed=0))
