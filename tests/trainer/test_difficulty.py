"""Prompts chosen by how likely their answer is already."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

import nrt
from nrt.config import DifficultyConfig
from nrt.errors import Interrupted
from nrt.trainer.difficulty import MAX_DRAWS, ByDifficulty
from nrt.trainer.setup import prepare
from nrt.types import Example, Message, Pair, Row
from tests.steps import collect
from tests.trainer.test_train import InterruptAt, assert_same_run


class Told:
    """Stands for a policy: says of each answer token what its id says, in hundredths."""

    def score(self, rows: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (torch.log(torch.tensor(row.tail_ids) / 100), torch.zeros(len(row.tail_ids)))
            for row in rows
        ]


def pair_of(name: int, *hundredths: int) -> Pair:
    return Pair(Example(str(name), (Message("user", "x"),), "y"), (1,), hundredths)


def choose(pairs: list[Pair], n: int, seed: int = 0, **how: Any):
    def draw(offset: int, count: int) -> list[Pair]:
        drawn.append((offset, count))
        return [pairs[i % len(pairs)] for i in range(offset, offset + count)]

    drawn: list[tuple[int, int]] = []
    policy: Any = Told()
    chooser = ByDifficulty(
        policy,
        lambda pair: Row(pair.prompt_ids, pair.answer_ids, (), False),
        DifficultyConfig(**how),
    )
    return chooser(draw, n, seed=seed), drawn


def test_certain_prompts_are_replaced_by_those_that_follow() -> None:
    """Certain: every token at .9 or more. Of the first four two are; the two that replace them hold one; one more is drawn."""
    pairs = [
        pair_of(i, *p)
        for i, p in enumerate([(91, 99), (99, 10), (95, 95), (89, 99), (91,), (50,), (20,)])
    ]
    chosen, drawn = choose(pairs, 4, skip_above=0.9)
    assert [pair.example.id for pair in chosen.pairs] == ["1", "3", "5", "6"]
    assert drawn == [(0, 4), (4, 2), (6, 1)]
    assert (chosen.offsets, chosen.drawn, chosen.certain) == ((1, 3, 5, 6), 7, 3)
    assert chosen.forwarded == 7 * 1 + 4 * 2 + 3 * 1, "prompts, then answers"


def test_certainty_everywhere_cannot_hold_up_a_run() -> None:
    chosen, drawn = choose([pair_of(0, 99)], 2, skip_above=0.9)
    assert len(drawn) == MAX_DRAWS
    assert (len(chosen.pairs), chosen.drawn) == (2, 2 * MAX_DRAWS)
    assert chosen.certain == 2 * MAX_DRAWS - 2, "two are trained on, so they are not skipped"


def test_chances_are_in_proportion_to_surprisal() -> None:
    """One of four, −log p = 1 : 2 : 3 : 4 (by their tokens' means); 4,000 draws; power 0: all alike; power 2: 1 : 4 : 9 : 16."""
    chances = torch.tensor([0.8, 0.4, 0.2, 0.1])
    pairs = [pair_of(i, int(100 * p)) for i, p in enumerate(chances.tolist())]
    surprisal = -torch.log((100 * chances).int() / 100)
    for power in (0.0, 1.0, 2.0):
        counts = Counter(
            choose(pairs, 1, seed, pool=4, power=power)[0].pairs[0].example.id
            for seed in range(4000)
        )
        expected = surprisal**power / (surprisal**power).sum()
        for i, share in enumerate(expected.tolist()):
            assert counts[str(i)] / 4000 == pytest.approx(
                share, abs=4 * (share * (1 - share) / 4000) ** 0.5 + 1e-9
            )


def test_nothing_is_drawn_twice_and_the_order_is_the_streams() -> None:
    pairs = [pair_of(i, 10 + 5 * i) for i in range(12)]
    for seed in range(20):
        chosen, drawn = choose(pairs, 4, seed, pool=3)
        assert drawn == [(0, 12)]
        assert list(chosen.offsets) == sorted(set(chosen.offsets))
        assert [int(pair.example.id) for pair in chosen.pairs] == list(chosen.offsets)
    assert choose(pairs, 4, 1, pool=3)[0].offsets == choose(pairs, 4, 1, pool=3)[0].offsets
    assert len({choose(pairs, 4, seed, pool=3)[0].offsets for seed in range(20)}) > 5


def test_a_pool_counts_only_what_is_uncertain() -> None:
    pairs = [pair_of(i, 99 if i % 2 else 50) for i in range(100)]
    chosen, drawn = choose(pairs, 2, skip_above=0.9, pool=2)
    assert drawn[0] == (0, 4)
    assert chosen.certain is not None
    assert chosen.drawn - chosen.certain == 4
    assert all(int(pair.example.id) % 2 == 0 for pair in chosen.pairs)


@pytest.mark.parametrize("method", ["nrt-gm", "sft", "rlpr-original"])
def test_a_run_resumes_with_the_same_choice(make_config, tmp_path, method) -> None:
    settings = {
        "method": method, "steps": 3, "save_every": 0, "updates_per_rollout": 2,
        "data.difficulty": {"skip_above": 0.9, "pool": 2.0}, "data.group_by_length": True,
    }  # fmt: skip
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    assert all(0 <= m["data/skipped"] <= 1 for m in whole.metrics()[1:])
    assert whole.metrics()[-1]["data/epoch"] >= 3 * 8 / 16, "candidates count as drawn"
    for n in (4, 6):
        run = str(tmp_path / f"cut-{n}")
        with pytest.raises(Interrupted):
            nrt.train(make_config(run=run, **settings), listener=InterruptAt(n))
        assert_same_run(whole, nrt.train(make_config(run=run, resume=run, **settings)))


def test_the_null_trace_decides(make_config) -> None:
    """On the real model: those chosen without chance (a huge power) are the least likely after START END."""
    parts = prepare(
        make_config(method="nrt-gm", batch=3, **{"data.difficulty": {"pool": 4.0, "power": 1e4}})
    )
    rollout = collect(parts.learner, parts.draw, 3, seed=1)
    plain = prepare(make_config(method="nrt-gm", batch=12))
    groups = collect(plain.learner, plain.draw, 12, seed=1).groups
    means = [group.credit.base_T.mean().item() for group in groups if group.credit]
    assert list(rollout.offsets) == sorted(sorted(range(12), key=lambda i: means[i])[:3])
    assert rollout.drawn == 12


def test_bad_rows_are_listed_in_the_run_folder(make_config, pairs_file, tmp_path) -> None:
    lines = pairs_file.read_text().splitlines()
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join([*lines[:8], '{"question": "what"', *lines[8:]]))
    with pytest.raises(nrt.InputError, match=r"some\.jsonl:9: broken JSON"):
        nrt.train(make_config(**{"data.train": str(file)}))
    run = nrt.train(
        make_config(
            steps=1, **{"data.train": str(file), "data.valid": str(file), "data.on_bad_row": "skip"}
        )
    )
    for kind in ("train", "valid"):
        (record,) = [
            json.loads(line)
            for line in (run.path / "skipped" / f"{kind}.jsonl").read_text().splitlines()
        ]
        assert (record["file"], record["number"]) == (str(file), 9)
    assert run.metrics()[-1]["data/bad_rows"] == 1
    assert "bad-rows" in [warning["kind"] for warning in run.warnings()]


def test_text_without_a_token_is_warned_of(make_config, tmp_path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(
        json.dumps(
            {"question": "what is three plus seven ?", "answer": "the sum is ten", "kind": "a"}
        )
        + "\n"
    )
    run = nrt.train(make_config(steps=1, batch=1, **{"data.train": str(file)}))
    (warning,) = [warning for warning in run.warnings() if warning["kind"] == "unknown-tokens"]
    assert warning["count"] == 2, "seven, ten"


def test_data_that_changed_since_are_not_gone_on_with(make_config, pairs_file, tmp_path) -> None:
    file = tmp_path / "pairs.jsonl"
    text = pairs_file.read_text()
    file.write_text(text)
    settings = {"run": str(tmp_path / "cut"), "data.train": str(file), "save_every": 0}
    with pytest.raises(Interrupted):
        nrt.train(make_config(**settings), listener=InterruptAt(4))
    file.write_text(text.replace("sum", "add"))
    with pytest.raises(
        nrt.InputError,
        match="the training data are no longer those of this run; restore the old files",
    ):
        nrt.train(make_config(resume=str(tmp_path / "cut"), **settings))
    file.write_text(text)
    assert (
        nrt.train(make_config(resume=str(tmp_path / "cut"), **settings)).metrics()[-1]["step"] == 3
    )


def test_held_out_data_that_changed_since(make_config, pairs_file, tmp_path) -> None:
    """Accuracies before and after would be of different questions."""
    file = tmp_path / "valid.jsonl"
    file.write_text(pairs_file.read_text())
    settings = {"run": str(tmp_path / "cut"), "data.valid": str(file)}
    nrt.train(make_config(**settings))
    file.write_text(pairs_file.read_text().replace("sum", "add"))
    with pytest.raises(nrt.InputError, match="the validation data are no longer those"):
        nrt.train(make_config(resume=str(tmp_path / "cut"), **{**settings, "steps": 5}))


def test_a_mixture_with_weights_trains_and_resumes(make_config, pairs_file, tmp_path) -> None:
    lines = pairs_file.read_text().splitlines()
    for name, part in (("a", lines[:4]), ("b", lines[4:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    sources = [
        {"path": str(tmp_path / f"{name}.jsonl"), "weight": w} for name, w in (("a", 3), ("b", 1))
    ]
    settings = {"data.train": sources, "steps": 4, "save_every": 0, "log_traces": 4}
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    drawn = Counter(record["id"].split(".")[0] for record in whole.traces())
    assert drawn == {"a": 12, "b": 4}, "one epoch of 16 rows at 3 : 1"
    run = str(tmp_path / "cut")
    with pytest.raises(Interrupted):
        nrt.train(make_config(run=run, **settings), listener=InterruptAt(5))
    assert_same_run(whole, nrt.train(make_config(run=run, resume=run, **settings)))
