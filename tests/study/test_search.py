"""`nrt compare --sweep`: the same number of tries for each variant, then runs with the best."""

import io
import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import yaml
from rich.console import Console

from benchmarks.keep_study import keep_study
from nrt.cli.compare import compare_study, make_grids, make_study, write_results
from nrt.config import dump_yaml, load_config
from nrt.errors import InputError, RunError
from nrt.study import RunOutcome
from nrt.study.search import (
    FIRST_SEED,
    check_chosen,
    parse_grid,
    read_search,
    search_study,
    tries_of,
    with_chosen,
)
from nrt.study.study import open_study, read_study, run_path
from nrt.trainer import train
from tests.runs import write_run
from tests.study.test_compare import recipe  # noqa: F401
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401


def study_of(methods):
    return make_study("tiny", [], methods=methods, variants="", seeds=2, baseline="")


def test_all_combinations_on_seeds_of_their_own():
    grid = parse_grid(["optimizer.lr=1e-5,3e-5", "traces=4, 8"])
    assert tries_of(grid)[1] == ("optimizer.lr=1e-5", "traces=8")
    study = study_of("sft,nrt-gm")
    tries = search_study(study, {"sft": grid, "nrt-gm": grid}, seeds=1)
    assert len(tries.variants) == 2 * 4
    assert tries.variants["nrt-gm--2"] == ("method=nrt-gm", "optimizer.lr=3e-5", "traces=4")
    seeds = {seed for _, seed in tries.runs()}
    assert seeds == {FIRST_SEED}
    assert seeds.isdisjoint(seed for _, seed in study.runs())


def test_an_earlier_study_must_come_from_the_search():
    """Found before the tries, not after them."""
    study, grids = study_of("sft"), {"sft": parse_grid(["optimizer.lr=1e-5,3e-5"])}
    check_chosen(
        replace(study, variants={"sft": ("method=sft", "optimizer.lr=3e-5")}), study, grids
    )
    with pytest.raises(InputError, match="none of the tries; give another --study name"):
        check_chosen(study, study, grids)


def test_a_setting_is_named_once():
    with pytest.raises(InputError, match="twice"):
        parse_grid(["optimizer.lr=1e-5,3e-5", "optimizer.lr=1e-4,3e-4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=1,2", "another variant or run"),
        ("method=sft,rlpr", "another variant or run"),
        ("optimizer.lr=1e-3,0.001", "has a value twice"),
    ],
)
def test_a_sweep_tries_different_settings_of_training(text, message):
    with pytest.raises(InputError, match=message):
        parse_grid([text])


@pytest.mark.parametrize("text", ["optimizer.lr", "optimizer.lr=1e-5", "=1,2", "traces=4,,8"])
def test_a_sweep_names_a_setting_and_values(text):
    with pytest.raises(InputError, match="at least two values"):
        parse_grid([text])


def test_every_variant_gets_equally_many_tries(tmp_path):
    """A variants file may give a variant a grid of its own; its length must be the others'."""
    file = tmp_path / "variants.yaml"
    values = {"variants": {"a": [], "b": ["method=nrt-gm"]}, "sweep": {"b": {"traces": [4, 8]}}}
    file.write_text(yaml.safe_dump(values))
    study = make_study("tiny", [], methods="", variants=str(file), seeds=1, baseline="")
    assert make_grids(study, str(file), []) == {}, "without --sweep nothing is searched"
    grids = make_grids(study, str(file), ["optimizer.lr=1e-5,3e-5"])
    assert grids["b"] == {"optimizer.lr": ("1e-5", "3e-5"), "traces": ("4", "8")}
    with pytest.raises(InputError, match="2, 4 tries"):
        search_study(study, grids, seeds=1)
    values["sweep"]["a"] = {"batch": [8, 16]}
    file.write_text(yaml.safe_dump(values))
    grids = make_grids(study, str(file), ["optimizer.lr=1e-5,3e-5"])
    assert len(search_study(study, grids, seeds=1).variants) == 8
    values["sweep"]["a"] = {"objective.signal_floor": [None, 0.1]}
    file.write_text(yaml.safe_dump(values))
    grids = make_grids(study, str(file), ["optimizer.lr=1e-5,3e-5"])
    assert grids["a"]["objective.signal_floor"] == ("null", "0.1")
    values["sweep"] = {"c": {"batch": [8, 16]}}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="variant in sweep"):
        make_grids(study, str(file), ["optimizer.lr=1e-5,3e-5"])


@pytest.fixture
def searched(tmp_path):
    """Two methods with three tries each on two seeds; the first sft try is best by correct, the
    second by logp. No run of the comparison is there.
    """
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "steps: 2\nbatch: 1\ntraces: 3\nmodel: m\ndata: {train: t.jsonl, valid: folder/valid.jsonl}\n"
        "heldout: {checker: exact}\n"
    )
    folder = tmp_path / "study"
    correct = {"sft": (0.5, 0.25, 0.5), "nrt-gm": (0.0, 0.25, 0.75)}
    tries = make_tries(file, "sft,nrt-gm")
    open_study(str(folder / "search"), tries)
    for name, seed in tries.runs():
        method, i = name.split("--")
        write_searched_run(folder / "search", tries, name, seed, correct[method][int(i)])
    return folder, file


def make_tries(file, methods):
    plan = make_study(str(file), [], methods=methods, variants="", seeds=1, baseline="")
    grid = {"optimizer.lr": ("1e-3", "2e-3", "3e-3")}
    return search_study(plan, dict.fromkeys(plan.variants, grid), seeds=2)


def write_searched_run(folder, study, name, seed, correct):
    """A finished run whose answers are right in that share of four questions. Its logp is the
    higher, the lower the last digit of its name.
    """
    path = run_path(folder, name, seed)
    write_run(path, groups=2)
    recipe, *settings = study.train_arguments(name, seed, folder)  # noqa: F811
    (path / "config.yaml").write_text(dump_yaml(load_config(recipe, settings)))
    rows = [
        {
            "id": f"v.jsonl:{i}",
            "source": "a",
            "question": f"{i}",
            "reference": "r",
            "correct": i < 4 * correct,
            "logp": -float(name[-1]) if name[-1].isdigit() else -1.0,
        }
        for i in range(4)
    ]
    last = max((path / "heldout").iterdir())
    last.write_text("".join(json.dumps(row) + "\n" for row in rows))


def compare_searched(folder, file, **options):
    arguments: dict[str, Any] = {"methods": "sft,nrt-gm", "seeds": 1, "sweep_seeds": 2}
    arguments |= {"finished_only": True} | options
    comparison = compare_study(
        Console(file=io.StringIO()),
        str(file),
        [],
        study=str(folder),
        **arguments,
    )
    assert comparison.search is not None
    return comparison, comparison.search


def choose(folder, file):
    """Write the study with its choice, and its finished runs."""
    search = read_search(folder / "search", "correct", {}, ["sft", "nrt-gm"])
    plan = make_study(str(file), [], methods="sft,nrt-gm", variants="", seeds=1, baseline="")
    plan = with_chosen(plan, search)
    open_study(str(folder), plan)
    for name, seed in plan.runs():
        write_searched_run(folder, plan, name, seed, 0.5)
    return search


def chosen_settings(search, variant):
    found = search.chosen(variant)
    assert found is not None
    return found.settings


SWEEP = ["optimizer.lr=1e-3,2e-3,3e-3"]


def test_the_first_of_the_best_tries_is_chosen(searched):
    search = choose(*searched)
    assert chosen_settings(search, "sft") == ("optimizer.lr=1e-3",)
    assert chosen_settings(search, "nrt-gm") == ("optimizer.lr=3e-3",)
    assert read_study(searched[0]).chosen_by == "correct"
    assert all(each.minutes > 0 for each in search.tries["sft"])


@pytest.mark.parametrize("sweep", [[], SWEEP])
def test_a_choice_stays_whatever_is_measured(searched, sweep):
    choose(*searched)
    comparison, search = compare_searched(*searched, measure="logp", sweep=sweep)
    assert search.measure == "correct"
    assert chosen_settings(search, "nrt-gm") == ("optimizer.lr=3e-3",)
    assert comparison.measure == "logp"
    assert "`optimizer.lr=3e-3` **0.750**" in (searched[0] / "compare.md").read_text()


def test_a_choice_stays_although_a_failed_try_would_now_be_better(searched):
    folder, file = searched
    lost = run_path(folder / "search", "nrt-gm--2", FIRST_SEED)
    lost.rename(lost.with_name("lost"))
    search = choose(folder, file)
    assert search.tries["nrt-gm"][2].score is None
    assert search.tries["nrt-gm"][2].minutes > 0, "the cost of the runs that are there"
    assert chosen_settings(search, "nrt-gm") == ("optimizer.lr=2e-3",)
    lost.with_name("lost").rename(lost)
    _, search = compare_searched(folder, file, sweep=SWEEP)
    assert search.tries["nrt-gm"][2].score == 0.75
    assert chosen_settings(search, "nrt-gm") == ("optimizer.lr=2e-3",)


def test_after_the_choice_the_runs_of_the_search_may_be_deleted(searched):
    folder, file = searched
    choose(folder, file)
    _, before = compare_searched(folder, file, sweep=SWEEP)
    text = (folder / "compare.md").read_text()
    shutil.rmtree(folder / "search" / "runs")
    for options in ({"sweep": SWEEP}, {"sweep": SWEEP, "finished_only": False}, {}):
        _, search = compare_searched(folder, file, **options)
        assert search == before
        assert (folder / "compare.md").read_text() == text
    (folder / "search" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results.json is damaged .*; restore it from a copy"):
        compare_searched(folder, file)
    (folder / "search" / "results.json").unlink()
    _, search = compare_searched(folder, file)
    assert [each.score for each in search.tries["sft"]] == [None] * 3, "the scores are lost"
    assert chosen_settings(search, "sft") == ("optimizer.lr=1e-3",)


def test_scores_are_recorded_before_the_comparison_starts(searched):
    """One run of a try is deleted, and the comparison has no finished run yet."""
    folder, file = searched
    choose(folder, file)
    shutil.rmtree(folder / "runs")
    with pytest.raises(RunError, match=r"no run of .* is finished"):
        compare_searched(folder, file)
    shutil.rmtree(run_path(folder / "search", "sft--0", FIRST_SEED))
    study = read_study(folder)
    for name, seed in study.runs():
        write_searched_run(folder, study, name, seed, 0.5)
    _, search = compare_searched(folder, file)
    assert search.tries["sft"][0].score == 0.5


def test_runs_can_be_added_to_a_kept_copy_without_texts(searched, tmp_path):
    folder, file = searched
    choose(folder, file)
    whole, _ = compare_searched(folder, file, sweep=SWEEP)
    kept = tmp_path / "kept"
    keep_study(folder, kept, small=True)
    added = run_path(kept, "nrt-gm", 0)
    assert '"reference"' not in max((added / "heldout").iterdir()).read_text()
    shutil.rmtree(added)
    shutil.copytree(run_path(folder, "nrt-gm", 0), added)
    comparison, _ = compare_searched(kept, file, sweep=SWEEP)
    assert comparison.rows == whole.rows


def test_a_try_without_a_value_of_some_question_is_not_chosen(searched):
    folder, file = searched
    for seed in (FIRST_SEED, FIRST_SEED + 1):
        rows = max((run_path(folder / "search", "sft--0", seed) / "heldout").iterdir())
        first, *others = map(json.loads, rows.read_text().splitlines())
        lines = [first | {"correct": None}, *others]
        rows.write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert chosen_settings(choose(folder, file), "sft") == ("optimizer.lr=3e-3",)


def test_without_a_finished_try_nothing_can_be_chosen(searched):
    folder, _ = searched
    for i in range(3):
        run_path(folder / "search", f"sft--{i}", FIRST_SEED).rename(folder / f"lost-{i}")
    with pytest.raises(InputError, match="no try of sft has correct of all its questions"):
        read_search(folder / "search", "correct", {}, ["sft"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweep": SWEEP, "sweep_seeds": 1}, "has 2 seeds; give --sweep-seeds 2"),
        ({"sweep": ["optimizer.lr=1e-3,2e-3"]}, "has 3 tries of each variant, not 2"),
        ({"sweep": ["optimizer.lr=1e-3,2e-3,3e-3,4e-3"]}, "has 3 tries of each variant, not 4"),
        ({"methods": "sft,nrt-gm,rlpr", "finished_only": False}, "those of rlpr were not; give"),
    ],
)
def test_a_search_goes_on_with_equal_terms_only(searched, options, message):
    choose(*searched)
    with pytest.raises(InputError, match=message):
        compare_searched(*searched, **options)


def test_settings_are_not_chosen_by_what_sft_does_not_have(searched):
    folder, file = searched
    (folder / "search").rename(folder / "other")
    with pytest.raises(InputError, match="cannot be chosen by correct_null, since sft has no"):
        compare_study(
            Console(file=io.StringIO()), str(file), [], study=str(folder),
            methods="sft,nrt-gm", measure="correct_null", sweep=SWEEP,
        )  # fmt: skip


def test_a_later_method_is_searched_for_alone_and_the_others_stay_in_the_table(searched):
    folder, file = searched
    choose(folder, file)
    comparison, search = compare_searched(folder, file, methods="sft,rlpr", sweep=SWEEP)
    assert set(search.tries) == {"sft", "nrt-gm"}, "--finished-only writes nothing new"
    tries = make_tries(file, "sft,rlpr")
    open_study(str(folder / "search"), tries)
    with pytest.raises(InputError, match="no try of rlpr has correct"):
        read_search(folder / "search", "correct", read_study(folder).variants, ["rlpr"])
    write_searched_run(folder / "search", tries, "rlpr--0", FIRST_SEED, 0.5)
    for sweep in ([], SWEEP):  # one run of its search is finished: it holds up nothing
        comparison, search = compare_searched(folder, file, sweep=sweep)
        assert search.chosen("rlpr") is None
        assert "rlpr" not in read_study(folder).variants
        assert {row.variant for row in comparison.rows} == {"sft", "nrt-gm"}


def test_a_study_of_an_earlier_nrt_goes_on(searched):
    """Its study.yaml does not say by which measure the settings were chosen."""
    folder, file = searched
    choose(folder, file)
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(text.replace("chosen_by: correct\n", ""))
    _, search = compare_searched(folder, file, sweep=SWEEP)
    assert chosen_settings(search, "nrt-gm") == ("optimizer.lr=3e-3",)
    assert read_study(folder).chosen_by == "correct"


def test_a_variants_own_setting_may_be_a_value_of_the_sweep(searched):
    folder, file = searched
    plan = replace(
        make_study(str(file), [], methods="sft", variants="", seeds=1, baseline=""),
        variants={"sft": ("method=sft", "optimizer.lr=1e-3")},
    )
    tries = search_study(plan, {"sft": {"optimizer.lr": ("1e-3", "2e-3")}}, seeds=1)
    open_study(str(folder / "own"), tries)
    for name, seed in tries.runs():
        write_searched_run(folder / "own", tries, name, seed, 1 - int(name[-1]))
    chosen = with_chosen(plan, read_search(folder / "own", "correct", {}, ["sft"]))
    assert chosen.variants["sft"] == ("method=sft", "optimizer.lr=1e-3", "optimizer.lr=1e-3")
    search = read_search(folder / "own", "correct", chosen.variants)
    assert chosen_settings(search, "sft") == ("optimizer.lr=1e-3",)


def test_finished_runs_only_do_not_enlarge_a_study(searched):
    choose(*searched)
    compare_searched(*searched, seeds=3)
    assert read_study(searched[0]).seeds == 1


def test_a_search_and_the_comparison_after_it(recipe, tmp_path, monkeypatch):  # noqa: F811
    """All runs but one are there already, as after a kill."""
    folder = tmp_path / "study"
    finished = [("search", "sft--0", 1e-3), ("search", "sft--1", 0.3), ("", "sft", 1e-3)]
    for place, variant, lr in finished:
        seed = FIRST_SEED if place else 0
        path = run_path(folder / place, variant, seed)
        settings = ["method=sft", f"optimizer.lr={lr}", f"seed={seed}", f"run={path}"]
        train(load_config(recipe, settings))
    (folder / "runs" / "sft-seed0").rename(tmp_path / "taken")
    out = io.StringIO()

    def run(study=folder, **options):
        return compare_study(
            Console(file=out, width=200),
            recipe,
            [],
            methods="sft",
            seeds=1,
            study=str(study),
            measure="logp",
            sweep=["optimizer.lr=1e-3,0.3"],
            **options,
        )

    with pytest.raises(InputError, match="no settings are chosen yet"):
        run(finished_only=True)
    comparison = run()
    assert run(finished_only=True).rows == comparison.rows
    assert "1 of 1 runs to do" in out.getvalue(), "the comparison"
    assert comparison.search is not None
    gentle, wild = comparison.search.tries["sft"]
    assert gentle.score is not None
    assert wild.score is not None
    assert gentle.score > wild.score
    assert gentle.minutes > 0
    assert read_study(folder).variants == {"sft": ("method=sft", "optimizer.lr=1e-3")}
    saved = json.loads((folder / "compare.json").read_text())["search"]
    assert saved["seeds"] == [FIRST_SEED]
    assert [each["score"] for each in saved["tries"]["sft"]] == [gentle.score, wild.score]
    markdown = (folder / "compare.md").read_text()
    assert "2 tries for each, on seed 1000" in markdown
    assert "`optimizer.lr=1e-3` **" in markdown
    (folder / "accuracy.png").unlink()
    monkeypatch.setattr("nrt.cli.compare.has_matplotlib", lambda: False)
    assert run().rows == comparison.rows, "nothing is left to do"
    assert "without plots: they need matplotlib" in out.getvalue()
    assert not (folder / "accuracy.png").exists()
    # A kept copy is a finished study too: what a session measured, another one can add to.
    keep_study(folder, tmp_path / "kept", small=True)
    assert not (tmp_path / "kept" / "search" / "runs").exists()
    out.truncate(0)
    kept = run(tmp_path / "kept")
    assert f"in {tmp_path / 'kept' / 'search'}" not in out.getvalue(), "no try is made again"
    assert "0 of 1 runs to do" in out.getvalue()
    assert kept.rows[0].by_seed == pytest.approx(comparison.rows[0].by_seed, rel=1e-3)
    assert kept.search == comparison.search
    failed = RunOutcome("sft--1", FIRST_SEED, status=1, seconds=0.0, error="why")
    comparison = write_results(folder, [], measure="logp", failed_tries=[failed])
    assert comparison.missing == {"search: sft--1, seed 1000": "why"}
