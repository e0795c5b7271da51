"""Training on raw text: where the model is uncertain, and whole runs on documents."""

import json
import shutil

import pytest
import torch

import nrt
from nrt.data import bare_row, hinted_row
from nrt.errors import Interrupted
from nrt.system.environment import cache_folder
from nrt.trainer.entropies import model_entropies
from nrt.trainer.setup import prepare
from tests.tiny import tiny_model
from tests.trainer.conftest import write_pairs
from tests.trainer.test_train import InterruptAt, assert_same_run

IDS = (5, 9, 13, 7, 7, 30, 21, 11, 4, 19, 6)


def entropy_after(model, ids):
    with torch.no_grad():
        p = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    return -(p * p.log()).sum().item()


@pytest.mark.parametrize("opening", [(1,), ()])
@pytest.mark.parametrize("window", [1, 4, 5, 64])
def test_entropies_are_those_of_a_plain_forward(opening, window):
    """Windows of 4 overlap by half. With an opening o and tokens a b c d e f: a and b are read after o, c and d after o a b, e and f
    after o c d; without one a has 0, b and c are read after a, d and e after b c."""
    model, half = tiny_model(), max(1, window // 2)
    first = 0 if opening else 1
    expected = [0.0] * first
    for i in range(first, len(IDS)):
        begin = first + (i - first) // half * half  # of the half window in which it stands
        expected.append(entropy_after(model, [*opening, *IDS[max(0, begin - half) : i]]))
    found = model_entropies(model, opening, window, tokens_per_batch=16).compute(IDS)
    assert found == pytest.approx(expected, abs=1e-5)


def test_nothing_to_be_uncertain_of():
    assert model_entropies(tiny_model(), (), 4, 16).compute([]) == []
    assert model_entropies(tiny_model(), (), 4, 16).compute([5]) == [0.0]
    assert model_entropies(tiny_model(), (1,), 4, 16).compute([]) == []


def test_what_decides_the_entropies_is_in_their_fingerprint():
    def fingerprint(seed=0, opening=(1,), window=4, tokens_per_batch=16):
        return model_entropies(tiny_model(seed=seed), opening, window, tokens_per_batch).fingerprint

    assert fingerprint() == fingerprint(tokens_per_batch=99)
    assert (
        len({fingerprint(), fingerprint(seed=1), fingerprint(opening=()), fingerprint(window=5)})
        == 4
    )


@pytest.fixture
def documents_file(tmp_path):
    numbers = ["one", "two", "three", "four"]
    rows = [
        {
            "text": f"what is {a} plus {b} ? \n the sum is {b} so we get {a} ! what is {b} ? \n we add one to get {a}",
            "kind": a,
        }
        for a in numbers
        for b in numbers
    ]
    return write_pairs(tmp_path / "documents.jsonl", rows)


@pytest.fixture
def text_config(make_config, documents_file):
    def make(at="sentences", **settings):
        text = {
            "at": at,
            "stride": 4,
            "prefix_tokens": 12,
            "continuation_tokens": 6,
            "space": "drop",
        }
        data = {
            "train": str(documents_file),
            "valid": str(documents_file),
            "columns": {"source": "kind"},
            "text": text,
        }
        heldout = {"rows": 9, "swapped": True, "checker": None}
        return make_config(**{"data": data, "heldout": heldout, **settings})

    return make


@pytest.mark.parametrize("at", ["sentences", "stride", "entropy"])
@pytest.mark.parametrize("method", ["nrt-ws-neg-log-p", "sft"])
def test_interrupted_and_resumed(text_config, tmp_path, at, method):
    """With entropy the cuts are the initial model's, even where they have to be made again: the cache is lost in between."""
    settings = {"at": at, "method": method, "updates_per_rollout": 2, "save_every": 0}
    whole = nrt.train(text_config(run=str(tmp_path / "whole"), **settings))
    assert len(whole.metrics()) == 4
    run = str(tmp_path / "cut")
    with pytest.raises(Interrupted):
        nrt.train(text_config(run=run, **settings), listener=InterruptAt(5))
    shutil.rmtree(cache_folder() / "tokens")
    assert_same_run(whole, nrt.train(text_config(run=run, resume=run, **settings)))


@pytest.mark.parametrize("method", ["rlp", "sdft"])
def test_methods_of_the_field_on_documents(text_config, method):
    """`rlp` trains traces only. A continuation ends no turn, so a teacher reads all of it."""
    run = nrt.train(text_config(method=method, steps=2, eval_every=0))
    last = run.metrics()[-1]
    assert last["optim/grad_norm"] > 0
    assert (last["loss/answer"], last["loss/format"]) == (0.0, 0.0)
    parts = prepare(text_config(method=method))
    pair = parts.data.pairs[0]
    assert pair.answer_ids[-1] not in parts.learner.policy.stop_ids
    hinted = hinted_row(bare_row(pair), pair.answer_ids, parts.learner.policy.stop_ids)
    assert hinted.prompt_ids == (*pair.prompt_ids, *pair.answer_ids)


def test_records_of_documents(text_config):
    """Likelihood only. Sentences end before tokens 6, 16 and 20; the line breaks after the first and the last are dropped."""
    records = nrt.train(text_config()).heldout()
    assert [record["id"] for record in records[:4]] == [
        f"documents.jsonl:{name}" for name in ("1@7", "1@16", "1@21", "2@7")
    ]
    assert records[0]["question"].strip() == "what is one plus one ?"
    assert records[0]["reference"].strip() == "the sum is one so we"
    assert all(
        record["correct"] is None and record["logp_swapped"] is not None for record in records
    )
    assert {record["source"] for record in records} == {"one"}


def test_the_partner_is_of_another_document(text_config):
    heldout = prepare(text_config()).heldout
    assert heldout
    ids = [pair.example.id for pair in heldout.pairs]
    documents = [name.partition("@")[0] for name in ids]
    partners = heldout._partners()
    assert len(set(documents)) < len(documents)
    assert all(documents[j] != documents[i] for i, j in enumerate(partners))


def test_the_partner_of_a_question_alone_in_its_source_is_of_another(
    make_config, pairs_file, tmp_path
):
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["kind"] = "alone" if i == 1 else "others"
    file = write_pairs(tmp_path / "alone.jsonl", rows)
    heldout = prepare(make_config(**{"data.valid": str(file)})).heldout
    assert heldout
    partners = heldout._partners()
    assert len(heldout.pairs) > 3
    assert all(j != i for i, j in enumerate(partners))
    assert partners[1] == 2


def test_documents_and_pairs_in_one_run(make_config, pairs_file, documents_file, tmp_path):
    text = {"at": "stride", "stride": 4, "prefix_tokens": 12, "continuation_tokens": 6}
    sources = [
        {"path": str(pairs_file), "weight": 1},
        {"path": str(documents_file), "weight": 1, "columns": {"source": "kind"}, "text": text},
    ]
    settings = {"data": {"train": sources, "valid": sources}, "heldout.rows": 99, "batch": 16}
    run = nrt.train(make_config(run=str(tmp_path / "a"), **settings))
    assert {record["source"] for record in run.heldout()} == {
        "kind-0",
        "kind-1",
        "one",
        "two",
        "three",
        "four",
    }
    assert all(record["logp"] < 0 for record in run.heldout())
