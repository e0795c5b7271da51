"""Cases of real models: adapters, markers, caches, windows, positions and templates."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers import AddedToken
from transformers import AutoConfig

import nrt
from nrt.config import MarkersConfig
from nrt.data import Chat
from nrt.errors import InputError
from nrt.models import (
    AdapterConfig,
    add_adapters,
    add_marker_tokens,
    add_markers,
    end_token_ids,
    merged_parameters,
    position_limit,
    save_model,
)
from nrt.rollout import HFSampler
from nrt.rollout.base import Request
from nrt.rollout.probe import sharing_fault
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer, packed_check
from nrt.scoring.probe import probe_rows
from nrt.trainer.setup import prepare
from nrt.types import Example, Message, Pair
from tests.steps import collect
from tests.tiny import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    EOS,
    PAD,
    random_rows,
    row,
    tiny_model,
    tiny_tokenizer,
)
from tests.trainer.conftest import make_tokenizer, tiny_config, write_model, write_sums

MIXTURE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
}  # fmt: skip
AFMOE: dict[str, Any] = {
    "head_dim": 8, "sliding_window": 6, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_dense_layers": 1,
}  # fmt: skip
ROWS = random_rows(1, [(9, 12), (9, 7), (4, 12), (14, 5)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("situations")
    return write_model(folder / "model"), write_sums(folder / "train.jsonl")


def own_config(files: Any, run: Any, **settings: Any) -> Any:
    """Return `tiny_config` with the files of this module."""
    model, pairs = files
    return tiny_config(model, pairs, run, **settings)


# --- adapters ---


def test_adapters_on_a_mixture_of_experts_can_be_merged():
    """Routers and fused experts get no adapters, because these could not be merged."""
    model, plain = tiny_model("mixtral", **MIXTURE), tiny_model("mixtral", **MIXTURE)
    add_adapters(model, AdapterConfig(4, 8.0), [5, 6])
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in names}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    plain.load_state_dict(dict(merged_parameters(model)))
    merged, adapted = PaddedScorer(PAD)(plain, ROWS), PaddedScorer(PAD)(model, ROWS)
    torch.testing.assert_close(merged.logp_N, adapted.logp_N, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("gate",), "MixtralTopKRouter"),
        (("q_proj", "lm_head"), "lm_head is a table"),
        (("embed_tokens",), "embed_tokens is a table"),
    ],
)
def test_unsupported_targets_are_refused_by_name(targets, message):
    with pytest.raises(InputError, match=message):
        add_adapters(tiny_model("mixtral", **MIXTURE), AdapterConfig(4, 8.0, targets), [5, 6])


def test_adapters_on_conv1d_can_be_merged():
    model = tiny_model("gpt2")
    add_adapters(model, AdapterConfig(2, 4.0), [5])
    assert dict(merged_parameters(model)).keys() >= {"transformer.h.0.attn.c_attn.weight"}


# --- markers that a model already has ---


def thinking(template: str = CHAT_TEMPLATE, *, special: bool = False) -> Any:
    """Return a tokenizer with <think> and </think>; in Qwen3 these tokens are not special."""
    tokenizer = tiny_tokenizer("bytes", chat_template=template)
    texts = ("<think>", "</think>")
    tokens = [AddedToken(text, special=special, normalized=False) for text in texts]
    tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer


THINK = MarkersConfig(start="<think>", end="</think>")


def test_an_ordinary_token_becomes_a_marker():
    tokenizer = thinking()
    ids = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    model = tiny_model(vocab_size=len(tokenizer))
    weight = model.get_input_embeddings().weight.clone()
    assert add_markers(model, tokenizer, THINK) == ()
    chat = Chat(tokenizer, THINK)
    assert [chat.start_id, chat.end_id] == ids
    assert torch.equal(model.get_input_embeddings().weight, weight)
    prompt = chat.encode_prompt((Message("user", "say </think> to me"),))
    assert not set(ids) & set(prompt), "no text becomes a marker"


def test_a_template_may_open_the_trace():
    """The template of DeepSeek-R1 ends the prompt with <think> and a line break."""
    opening = CHAT_TEMPLATE.replace("assistant:{% endif %}", "assistant:<think>\\n{% endif %}")
    tokenizer = thinking(opening, special=True)
    chat = Chat(tokenizer, THINK)
    start, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert (chat.start_id, chat.end_id) == (None, end)
    prompt = chat.encode_prompt((Message("user", "what is 2 ?"),))
    assert prompt.count(start) == 1
    exported = chat.exported_template(open_trace=True)
    assert isinstance(exported, str)
    turns = [{"role": "user", "content": "what is 2 ?"}]
    text = tokenizer.apply_chat_template(
        turns, chat_template=exported, tokenize=False, add_generation_prompt=True
    )
    assert text.count("<think>") == 1, "the export adds no second one"


def test_a_template_that_opens_another_trace_names_the_settings():
    opening = CHAT_TEMPLATE.replace("assistant:{% endif %}", "assistant:<think>\\n{% endif %}")
    tokenizer = thinking(opening, special=True)
    add_marker_tokens(tokenizer, MarkersConfig())
    with pytest.raises(InputError, match=r"markers.start='<think>' and markers.end='</think>'"):
        Chat(tokenizer, MarkersConfig())


def test_an_empty_trace_in_the_template_opens_none():
    """Qwen3 without thinking writes <think>, two line breaks, </think>."""
    closed = CHAT_TEMPLATE.replace(
        "assistant:{% endif %}", "assistant:<think>\\n\\n</think>{% endif %}"
    )
    tokenizer = thinking(closed, special=True)
    add_marker_tokens(tokenizer, MarkersConfig())
    assert Chat(tokenizer, MarkersConfig()).start_id is not None


def test_tags_around_a_turn_open_no_trace():
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    framed = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = tiny_tokenizer("bytes", chat_template=framed)
    tags = ("<assistant>", "</assistant>")
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in tags])
    add_marker_tokens(tokenizer, MarkersConfig())
    assert Chat(tokenizer, MarkersConfig()).start_id is not None


# --- caches and windows ---


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="earlier releases cache what DeepSeek's attention reads, so its prompts are shared",
)
def test_latent_attention_is_sampled_without_sharing(tmp_path, files):
    """DeepSeek's cache holds other tensors than its attention reads, so prompts cannot be shared.

    The run notes say so.
    """
    model = tiny_model("deepseek_v3", num_key_value_heads=4, **LATENT)
    choice = choose_scorer(model, PAD, rows=ROWS)
    assert isinstance(choice.scorer, PackedScorer)
    assert "its cache fails" in sharing_fault(model, PAD, ROWS, choice.tolerance)
    request = Request([(3, 4, 5), (6, 7, 8, 9)], n=2, stop_ids=frozenset({EOS}), cap=8, seed=0)
    samples = HFSampler(model, PAD, share=False).sample(request)
    rows, sampled = [], []
    for prompt, group in zip(request.prompts, samples, strict=True):
        for sample in group:
            rows.append(row(prompt, sample.ids))
            sampled += sample.logps
    scored_N = PaddedScorer(PAD)(model, rows).logp_N.detach()
    torch.testing.assert_close(torch.tensor(sampled), scored_N, atol=1e-4, rtol=0)
    _, pairs = files
    tokenizer = make_tokenizer()
    own = tiny_model("deepseek_v3", vocab_size=len(tokenizer), num_key_value_heads=4, **LATENT)
    save_model(own, tokenizer, tmp_path / "model", template=tokenizer.chat_template)
    parts = prepare(tiny_config(tmp_path / "model", pairs, tmp_path / "run"))
    assert any("keys and values of its own" in note for note in parts.notes)
    assert collect(parts.learner, parts.draw, 2, seed=0).metrics["sampler/logp_gap"] < 1e-4


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("afmoe", AFMOE), ("mistral", {"sliding_window": 6}), ("gemma3", {"sliding_window": 6})],
)
def test_all_scorers_respect_a_window_shorter_than_a_row(architecture, changes):
    model = tiny_model(architecture, **changes)
    choice = choose_scorer(model, PAD, rows=ROWS)
    assert isinstance(choice.scorer, PackedScorer), choice.why
    packed, padded = choice.scorer(model, ROWS), PaddedScorer(PAD)(model, ROWS)
    torch.testing.assert_close(packed.logp_N, padded.logp_N, atol=1e-5, rtol=1e-5)
    assert sharing_fault(model, PAD, ROWS, choice.tolerance) == ""


def test_probe_rows_exceed_a_window_that_rows_can_reach():
    pair = Pair(Example("x:1", (), ""), tuple(range(3, 13)), (20, 21, 22, 2))
    model = tiny_model("mistral", sliding_window=50)
    long_rows = probe_rows([pair], model.config, longest=200)
    short_rows = probe_rows([pair], model.config, longest=40)
    assert max(len(row.ids) for row in long_rows) > 50
    assert max(len(row.ids) for row in short_rows) < 50, "no row of such a run reaches the window"
    tokens = {token for row in long_rows for token in row.ids}
    assert tokens <= {*pair.prompt_ids, *pair.answer_ids}


def test_a_model_that_reads_pads_is_refused_for_prompts_of_any_length(monkeypatch):
    """Both prompts are longer than those of the probe, which must not become equally long."""
    model = tiny_model("diffllama", initializer_range=0.1)
    prompts = [tuple(3 + (7 * i + j) % 20 for j in range(60)) for i in range(2)]
    pairs = [Pair(Example("x:1", (), ""), prompt, (20, 21, 22, 2)) for prompt in prompts]
    rows = probe_rows(pairs, model.config, longest=100)
    assert len({len(row.prompt_ids) for row in rows}) == 2
    choice = choose_scorer(model, PAD, rows=rows)
    sharing_fault(model, PAD, rows, choice.tolerance)

    @functools.wraps(model.forward)
    def forward(*args, forward=model.forward, **kwargs):
        return forward(*args, **kwargs | {"attention_mask": None})

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(InputError, match="cannot be sampled from here, log-probabilities would"):
        sharing_fault(model, PAD, rows, choice.tolerance)


# --- tolerance of the probe ---


def test_the_tolerance_is_a_multiple_of_the_models_noise(monkeypatch):
    """If padded scores change by 1e-3 between batches, packed scores may differ by as much."""
    model = tiny_model()
    calls = [0]

    def noisy(self, causal_lm, rows, score=PaddedScorer.__call__):
        scores = score(self, causal_lm, rows)
        calls[0] += 1
        noise = 1e-3 * torch.sin(torch.arange(len(scores.logp_N)) + float(calls[0]))
        return type(scores)(scores.logp_N + noise, scores.entropy_N, scores.lengths)

    monkeypatch.setattr(PaddedScorer, "__call__", noisy)
    choice = choose_scorer(model, PAD, rows=ROWS)
    assert isinstance(choice.scorer, PackedScorer)
    assert 2e-3 < choice.tolerance < 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_bfloat16_is_no_fault(architecture, seed):
    """Where kernels do not depend on the batch, the model's own noise is 0."""
    torch.manual_seed(seed)
    model = tiny_model(architecture, hidden_size=64, head_dim=16).bfloat16()
    rows = random_rows(seed, [(9, 12), (5, 14), (12, 20), (20, 9)])
    choice = choose_scorer(model, PAD, rows=rows)
    assert choice.packed, choice.why
    assert sharing_fault(model, PAD, rows, choice.tolerance) == ""


@pytest.mark.parametrize("fault", [{"scaling": 1.3}, {"scaling": 0.5}])
def test_another_scale_of_attention_is_a_fault_in_bfloat16(fault, monkeypatch):
    """One that changes log-probabilities by tenths of a nat in the mean."""

    def wrong(model, attention, score=packed_check.score_packed):
        for layer in model.model.layers:
            layer.self_attn.scaling *= fault["scaling"]
        try:
            return score(model, attention)
        finally:
            for layer in model.model.layers:
                layer.self_attn.scaling /= fault["scaling"]

    monkeypatch.setattr(packed_check, "score_packed", wrong)
    model = tiny_model("llama", hidden_size=64, head_dim=16).bfloat16()
    choice = choose_scorer(model, PAD, rows=random_rows(1, [(9, 12), (5, 14), (12, 20), (20, 9)]))
    assert "would differ" in choice.why


def test_a_known_family_that_is_padded_is_a_surprise_with_numbers(monkeypatch):
    def wrong(*arguments, score=packed_check.score_packed):
        scores = score(*arguments)
        return type(scores)(scores.logp_N + 0.01, scores.entropy_N, scores.lengths)

    monkeypatch.setattr(packed_check, "score_packed", wrong)
    choice = choose_scorer(tiny_model(), PAD, rows=ROWS)
    assert isinstance(choice.scorer, PaddedScorer)
    assert choice.surprising
    assert "differ by 1.0e-02 nats, where 1.0e-04 are allowed" in choice.why


def test_wrong_gradients_are_detected(monkeypatch):
    def scaled(*arguments, score=packed_check.score_packed):
        scores = score(*arguments)
        values = scores.logp_N.detach()
        logp_N = values + 1.1 * (scores.logp_N - values)  # only the gradient changes
        return type(scores)(logp_N, scores.entropy_N, scores.lengths)

    monkeypatch.setattr(packed_check, "score_packed", scaled)
    assert "gradients would differ" in choose_scorer(tiny_model(), PAD, rows=ROWS).why


def test_a_model_whose_scores_depend_on_the_batch_is_refused(monkeypatch):
    def by_batch(self, causal_lm, rows, score=PaddedScorer.__call__):
        scores = score(self, causal_lm, rows)
        return type(scores)(scores.logp_N + 0.1 * len(rows), scores.entropy_N, scores.lengths)

    monkeypatch.setattr(PaddedScorer, "__call__", by_batch)
    with pytest.raises(InputError, match="cannot be trained in batches"):
        choose_scorer(tiny_model(), PAD, rows=ROWS)


def test_a_run_warns_if_rows_are_padded_by_surprise(files, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(packed_check, "score_packed", broken)
    run = nrt.train(own_config(files, tmp_path / "run", steps=1))
    (warning,) = [w for w in run.warnings() if w["kind"] == "padded-rows"]
    assert "no such kernel" in warning["message"]


# --- positions ---


@pytest.mark.parametrize(
    ("architecture", "changes", "limit"),
    [
        ("llama", {"max_position_embeddings": 64}, 64),
        ("gpt2", {"max_position_embeddings": 64}, 64),
        (
            "phi3",
            {
                "max_position_embeddings": 128,
                "original_max_position_embeddings": 32,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "rope_theta": 1e4,
                },
            },
            32,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            },
            64,
        ),
    ],
)
def test_position_limit(architecture, changes, limit):
    """With longrope it is the original length, beyond which rows of a batch affect each other."""
    assert position_limit(tiny_model(architecture, **changes).config) == limit


def test_alibi_has_no_limit():
    assert position_limit(AutoConfig.for_model("bloom")) is None


def test_caps_beyond_the_context_are_refused_before_anything_is_written(files, tmp_path):
    """The model has 64 positions: 9 for a prompt, 8 for an answer, START, END, 45 for a trace."""
    config = own_config(files, tmp_path / "run", max_trace_tokens=60)
    message = "positions for 64; set max_trace_tokens=46, or take a model"
    with pytest.raises(InputError, match=message):
        nrt.train(config)
    assert not (tmp_path / "run").exists()
    longest = max(prepare(own_config(files, tmp_path / "run")).data.pairs.caches[0].prompt_lengths)
    fitting = 64 - int(longest) - 2 - 8
    prepare(own_config(files, tmp_path / "run", max_trace_tokens=fitting))
    with pytest.raises(InputError):
        prepare(own_config(files, tmp_path / "run", max_trace_tokens=fitting + 1))


# --- multimodal configs and templates ---


def test_end_tokens_of_a_multimodal_config_are_those_of_its_text_config():
    class Config:
        def __init__(self, eos: int | None) -> None:
            if eos is not None:
                self.eos_token_id = eos

        def get_text_config(self) -> Config:
            return Config(EOS)

    class Model:
        config, generation_config = Config(None), None

    tokenizer = tiny_tokenizer("bytes")
    assert end_token_ids(Model(), tokenizer) == {EOS}  # type: ignore[arg-type]


PARTS = (
    "{% for m in messages %}{{ m.role }}:"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "{{ '\\n' }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_of(template: str) -> Chat:
    tokenizer = tiny_tokenizer("bytes", chat_template=template)
    add_marker_tokens(tokenizer, MarkersConfig())
    return Chat(tokenizer, MarkersConfig())


def test_a_template_that_loops_over_parts_receives_parts():
    """In a string it would find no parts, and all questions would have the same ids."""
    as_parts, as_text = chat_of(PARTS), chat_of(CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    turns = (
        Message("system", "be short"),
        Message("user", "where is bob ?"),
        Message("assistant", "home ."),
        Message("user", "why ?"),
    )
    expected = as_text.decode(as_text.encode_prompt(turns))
    assert as_parts.decode(as_parts.encode_prompt(turns)) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.role }}{% endfor %}",
            r"drops the content of turns \(user, assistant, earlier\)",
        ),
        (
            "{% for m in messages %}"
            "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            r"drops the content of turns \(assistant\)",
        ),
        ("{{ 1 + 'a' }}", "refuses these turns: unsupported operand"),
    ],
)
def test_a_template_that_drops_messages_is_refused_in_one_line(template, message):
    with pytest.raises(InputError, match=message) as caught:
        chat_of(template)
    assert "\n" not in str(caught.value)


def test_a_template_that_drops_system_messages_is_refused_if_there_is_one():
    turn = "{{ m.role }}:{{ m.content }}\n"
    dropping = CHAT_TEMPLATE.replace(turn, "{% if m.role != 'system' %}" + turn + "{% endif %}")
    chat = chat_of(dropping)
    chat.encode_prompt((Message("user", "why ?"),))
    with pytest.raises(InputError, match="drops system messages"):
        chat.encode_prompt((Message("system", "be short"), Message("user", "why ?")))
