"""Situations of real models, each named after what is right: adapters, markers, caches, windows, positions, templates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoConfig

import nrt
from nrt.config import MarkersConfig
from nrt.data import Chat
from nrt.errors import InputError
from nrt.models import Adapters, add_adapters, add_marker_tokens, add_markers, end_token_ids, merged, position_limit, save_model
from nrt.rollout import HFSampler
from nrt.rollout.base import Request
from nrt.rollout.probe import sharing_fault
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer
from nrt.scoring import packed as packed_module
from nrt.scoring.probe import probe_rows
from nrt.training.setup import prepare
from nrt.types import Example, Message, Pair
from tests.tiny import CHAT_TEMPLATE, EOS, PAD, random_rows, row, tiny_model, tiny_tokenizer
from tests.training.conftest import make_tokenizer, tiny_config, write_model, write_sums

MIXTURE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
}  # fmt: skip
AFMOE: dict[str, Any] = {
    "head_dim": 8, "sliding_window": 6, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "num_dense_layers": 1,
}  # fmt: skip
ROWS = random_rows(1, [(9, 12), (9, 7), (4, 12), (14, 5)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("situations")
    return write_model(folder / "model"), write_sums(folder / "train.jsonl")


def own_config(files: Any, run: Any, **settings: Any) -> Any:
    """`tiny_config` on the files of this module."""
    model, pairs = files
    return tiny_config(model, pairs, run, **settings)


# --- B1, A7: adapters ---


def test_adapters_on_a_mixture_of_experts_are_merged_again():
    """Routers and fused experts are left alone: adapters on them trained, and could not be saved."""
    model, plain = tiny_model("mixtral", **MIXTURE), tiny_model("mixtral", **MIXTURE)
    add_adapters(model, Adapters(4, 8.0), [5, 6])
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if "lora_" in name}
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    plain.load_state_dict(dict(merged(model)))
    torch.testing.assert_close(PaddedScorer(PAD)(plain, ROWS).logp_N, PaddedScorer(PAD)(model, ROWS).logp_N, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(("gate",), "is a MixtralTopKRouter"), (("q_proj", "lm_head"), "lm_head is a table"), (("embed_tokens",), "embed_tokens is a table")],
)
def test_adapters_that_could_not_be_trained_or_saved_are_refused_by_name(targets, message):
    with pytest.raises(InputError, match=message):
        add_adapters(tiny_model("mixtral", **MIXTURE), Adapters(4, 8.0, targets), [5, 6])


def test_adapters_on_conv1d_are_merged_again():
    model = tiny_model("gpt2")
    add_adapters(model, Adapters(2, 4.0), [5])
    assert dict(merged(model)).keys() >= {"transformer.h.0.attn.c_attn.weight"}


# --- B2, B4: markers that a model brings along ---


def thinking(template: str = CHAT_TEMPLATE, *, special: bool = False) -> Any:
    """A tokenizer with <think> and </think>, which Qwen3 has as tokens that are not special."""
    tokenizer = tiny_tokenizer("bytes", chat_template=template)
    tokens = [AddedToken(text, special=special, normalized=False) for text in ("<think>", "</think>")]
    tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer


THINK = MarkersConfig(start="<think>", end="</think>")


def test_a_token_that_is_not_special_is_made_a_marker():
    tokenizer = thinking()
    ids = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    model = tiny_model(vocab_size=len(tokenizer))
    before = model.get_input_embeddings().weight.clone()
    assert add_markers(model, tokenizer, THINK) == ()
    chat = Chat(tokenizer, THINK)
    assert [chat.start_id, chat.end_id] == ids
    assert torch.equal(model.get_input_embeddings().weight, before)
    spelled = chat.encode_prompt((Message("user", "say </think> to me"),))
    assert not set(ids) & set(spelled), "no text becomes a marker"


def test_a_template_that_opens_the_trace_writes_start_itself():
    """DeepSeek-R1's ends its prompt with <think> and a line break: then a trace follows at once."""
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
    text = tokenizer.apply_chat_template(turns, chat_template=exported, tokenize=False, add_generation_prompt=True)
    assert text.count("<think>") == 1, "and none is added at export"


def test_a_template_that_opens_another_trace_names_the_settings():
    opening = CHAT_TEMPLATE.replace("assistant:{% endif %}", "assistant:<think>\\n{% endif %}")
    tokenizer = thinking(opening, special=True)
    add_marker_tokens(tokenizer, MarkersConfig())
    with pytest.raises(InputError, match=r"markers.start='<think>' and markers.end='</think>'"):
        Chat(tokenizer, MarkersConfig())


def test_a_trace_that_the_template_opens_and_closes_is_none():
    """Qwen3 without thinking: <think>, two line breaks, </think>."""
    closed = CHAT_TEMPLATE.replace("assistant:{% endif %}", "assistant:<think>\\n\\n</think>{% endif %}")
    tokenizer = thinking(closed, special=True)
    add_marker_tokens(tokenizer, MarkersConfig())
    assert Chat(tokenizer, MarkersConfig()).start_id is not None


def test_tags_that_frame_a_turn_open_no_trace():
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    framed = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = tiny_tokenizer("bytes", chat_template=framed)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in ("<assistant>", "</assistant>")])
    add_marker_tokens(tokenizer, MarkersConfig())
    assert Chat(tokenizer, MarkersConfig()).start_id is not None


# --- B3, B7: caches and windows ---


def test_latent_attention_is_sampled_plainly_and_says_so(tmp_path, files):
    """DeepSeek's caches hold something else than its attention reads, so its prompts' keys and values cannot be shared."""
    model = tiny_model("deepseek_v3", num_key_value_heads=4, **LATENT)
    choice = choose_scorer(model, PAD, rows=ROWS)
    assert isinstance(choice.scorer, PackedScorer)
    assert "its cache says" in sharing_fault(model, PAD, ROWS, choice.tolerance)
    request = Request([(3, 4, 5), (6, 7, 8, 9)], n=2, stop_ids=frozenset({EOS}), cap=8, seed=0)
    samples = HFSampler(model, PAD, share=False).sample(request)
    rows = [row(prompt, sample.ids) for prompt, group in zip(request.prompts, samples, strict=True) for sample in group]
    sampled = torch.tensor([logp for group in samples for sample in group for logp in sample.logps])
    torch.testing.assert_close(sampled, PaddedScorer(PAD)(model, rows).logp_N.detach(), atol=1e-4, rtol=0)
    _, pairs = files
    tokenizer = make_tokenizer()
    own = tiny_model("deepseek_v3", vocab_size=len(tokenizer), num_key_value_heads=4, **LATENT)
    save_model(own, tokenizer, tmp_path / "model", template=tokenizer.chat_template)
    parts = prepare(tiny_config(tmp_path / "model", pairs, tmp_path / "run"))
    assert any("keys and values of its own" in note for note in parts.notes)
    assert parts.stepper.collect(parts.draw, 2, seed=0).metrics["sampler/logp_gap"] < 1e-4


@pytest.mark.parametrize(
    ("architecture", "changes"), [("afmoe", AFMOE), ("mistral", {"sliding_window": 6}), ("gemma3", {"sliding_window": 6})]
)
def test_windows_shorter_than_a_row_bind_in_every_way_of_scoring(architecture, changes):
    model = tiny_model(architecture, **changes)
    choice = choose_scorer(model, PAD, rows=ROWS)
    assert isinstance(choice.scorer, PackedScorer), choice.why
    packed, padded = choice.scorer(model, ROWS), PaddedScorer(PAD)(model, ROWS)
    torch.testing.assert_close(packed.logp_N, padded.logp_N, atol=1e-5, rtol=1e-5)
    assert sharing_fault(model, PAD, ROWS, choice.tolerance) == ""


def test_the_probe_has_rows_longer_than_a_window_that_can_bind():
    pair = Pair(Example("x:1", (), ""), tuple(range(3, 13)), (20, 21, 22, 2))
    model = tiny_model("mistral", sliding_window=50)
    assert max(len(r.ids) for r in probe_rows([pair], model.config, longest=200)) > 50
    assert max(len(r.ids) for r in probe_rows([pair], model.config, longest=40)) < 50, "it never binds in such a run"
    assert all(token in (*pair.prompt_ids, *pair.answer_ids) for r in probe_rows([pair], model.config, longest=200) for token in r.ids)


# --- A6: the probe's bound ---


def test_the_bound_is_a_multiple_of_the_models_own_noise(monkeypatch):
    """A plain model whose padded scores move by 1e-3 between batches may be packed with differences of that size."""
    model = tiny_model()
    noisy = [0]

    def shaken(self, causal_lm, rows, score=PaddedScorer.__call__):
        scores = score(self, causal_lm, rows)
        noisy[0] += 1
        wobble = 1e-3 * torch.sin(torch.arange(len(scores.logp_N)) + float(noisy[0]))
        return type(scores)(scores.logp_N + wobble, scores.entropy_N, scores.lengths)

    monkeypatch.setattr(PaddedScorer, "__call__", shaken)
    choice = choose_scorer(model, PAD, rows=ROWS)
    assert isinstance(choice.scorer, PackedScorer)
    assert 2e-3 < choice.tolerance < 1e-2


def test_a_fallback_of_a_known_family_is_surprising_and_has_numbers(monkeypatch):
    def wrong(*arguments, score=packed_module.score_packed):
        scores = score(*arguments)
        return type(scores)(scores.logp_N + 0.01, scores.entropy_N, scores.lengths)

    monkeypatch.setattr(packed_module, "score_packed", wrong)
    choice = choose_scorer(tiny_model(), PAD, rows=ROWS)
    assert isinstance(choice.scorer, PaddedScorer)
    assert choice.surprising
    assert "differ by 1.0e-02 nats, where 1.0e-04 are allowed" in choice.why


def test_wrong_gradients_are_seen(monkeypatch):
    def scaled(*arguments, score=packed_module.score_packed):
        scores = score(*arguments)
        return type(scores)(scores.logp_N.detach() + 1.1 * (scores.logp_N - scores.logp_N.detach()), scores.entropy_N, scores.lengths)

    monkeypatch.setattr(packed_module, "score_packed", scaled)
    assert "gradients would differ" in choose_scorer(tiny_model(), PAD, rows=ROWS).why


def test_a_model_whose_scores_depend_on_the_batch_is_refused(monkeypatch):
    def by_batch(self, causal_lm, rows, score=PaddedScorer.__call__):
        scores = score(self, causal_lm, rows)
        return type(scores)(scores.logp_N + 0.1 * len(rows), scores.entropy_N, scores.lengths)

    monkeypatch.setattr(PaddedScorer, "__call__", by_batch)
    with pytest.raises(InputError, match="cannot be trained in batches"):
        choose_scorer(tiny_model(), PAD, rows=ROWS)


def test_a_run_warns_where_rows_are_padded_by_surprise(files, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(packed_module, "score_packed", broken)
    run = nrt.train(own_config(files, tmp_path / "run", steps=1))
    (warning,) = [w for w in run.warnings() if w["kind"] == "padded-rows"]
    assert "no such kernel" in warning["message"]


# --- A8, B5: positions ---


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
                "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4},
            },
            32,
        ),
        ("llama", {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 64),
    ],
)
def test_the_length_up_to_which_positions_mean_the_same(architecture, changes, limit):
    """Of longrope the original length: beyond it a row's frequencies depend on the rows beside it."""
    assert position_limit(tiny_model(architecture, **changes).config) == limit


def test_alibi_has_no_limit():
    assert position_limit(AutoConfig.for_model("bloom")) is None


def test_caps_beyond_the_context_are_named_before_anything_is_written(files, tmp_path):
    """The model has 64 positions. Prompts have up to 9 tokens and sampled answers up to 8: with START and END 45 are left for a trace."""
    config = own_config(files, tmp_path / "run", max_trace_tokens=60)
    with pytest.raises(InputError, match=r"positions for 64; lower .*max_trace_tokens=60.* by \d+ tokens"):
        nrt.train(config)
    assert not (tmp_path / "run").exists()
    longest = max(prepare(own_config(files, tmp_path / "run")).data.pairs.parts[0].prompt_lengths)
    fitting = 64 - int(longest) - 2 - 8
    prepare(own_config(files, tmp_path / "run", max_trace_tokens=fitting))
    with pytest.raises(InputError):
        prepare(own_config(files, tmp_path / "run", max_trace_tokens=fitting + 1))


# --- B6, B8: multimodal configs and templates ---


def test_end_tokens_of_a_multimodal_config_are_its_texts():
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
    "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{{ '\\n' }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_of(template: str) -> Chat:
    tokenizer = tiny_tokenizer("bytes", chat_template=template)
    add_marker_tokens(tokenizer, MarkersConfig())
    return Chat(tokenizer, MarkersConfig())


def test_a_template_that_loops_over_parts_is_given_parts():
    """It finds none in a string: all questions had the same ids."""
    as_parts, as_text = chat_of(PARTS), chat_of(CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    turns = (Message("system", "be short"), Message("user", "where is bob ?"), Message("assistant", "home ."), Message("user", "why ?"))
    assert as_parts.decode(as_parts.encode_prompt(turns)) == as_text.decode(as_text.encode_prompt(turns))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "drops what the user and the assistant says"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "drops what the assistant says"),
        ("{{ 1 + 'a' }}", "refuses these turns: unsupported operand"),
    ],
)
def test_a_template_that_loses_what_is_said_is_refused_in_one_line(template, message):
    with pytest.raises(InputError, match=message) as caught:
        chat_of(template)
    assert "\n" not in str(caught.value)


def test_a_template_that_drops_system_messages_is_refused_where_there_is_one():
    dropping = CHAT_TEMPLATE.replace(
        "{{ m.role }}:{{ m.content }}\n", "{% if m.role != 'system' %}{{ m.role }}:{{ m.content }}\n{% endif %}"
    )
    chat = chat_of(dropping)
    chat.encode_prompt((Message("user", "why ?"),))
    with pytest.raises(InputError, match="drops system messages"):
        chat.encode_prompt((Message("system", "be short"), Message("user", "why ?")))
