"""`nrt compare --sweep`: the same number of tries for each variant, then runs with the best."""

import io
import json
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from benchmarks.keep_study import SEARCH_METRICS, keep_study
from nrt.analysis.comparison import Search, Try
from nrt.cli.compare import compare_study, make_grids, make_study, write_results
from nrt.config import load_config
from nrt.errors import InputError
from nrt.study import RunOutcome
from nrt.study.search import FIRST_SEED, check_chosen, parse_grid, search_study, tries_of, with_best
from nrt.study.study import read_study, run_path
from nrt.trainer import train
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


def test_the_best_try_is_chosen_and_a_failed_one_never():
    tries = (Try(("a=1",), 0.2, 1.0), Try(("a=2",), None, 0.5), Try(("a=3",), 0.7, 1.0))
    search = Search("correct", (FIRST_SEED,), {"sft": tries})
    assert with_best(study_of("sft"), search).variants == {"sft": ("method=sft", "a=3")}
    with pytest.raises(InputError, match="search/logs"):
        Search("correct", (FIRST_SEED,), {"sft": (Try(("a=2",), None, 0.5),)}).best("sft")


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
    assert "0 of 2 runs to do" in out.getvalue(), "the search"
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
    assert "`optimizer.lr=1e-3`" in markdown
    (folder / "accuracy.png").unlink()
    monkeypatch.setattr("nrt.cli.compare.has_matplotlib", lambda: False)
    assert run().rows == comparison.rows, "nothing is left to do"
    assert "without plots: they need matplotlib" in out.getvalue()
    assert not (folder / "accuracy.png").exists()
    # A kept copy is a finished study too: what a session measured, another one can add to.
    keep_study(folder, tmp_path / "kept", small=True)
    keep_study(folder / "search", tmp_path / "kept" / "search", small=True, only=SEARCH_METRICS)
    out.truncate(0)
    kept = run(tmp_path / "kept")
    assert "0 of 2 runs to do" in out.getvalue()
    assert "0 of 1 runs to do" in out.getvalue()
    assert kept.rows[0].by_seed == pytest.approx(comparison.rows[0].by_seed, rel=1e-3)
    assert kept.search.tries["sft"][0].score == pytest.approx(gentle.score, rel=1e-3)
    assert kept.search.tries["sft"][0].minutes == pytest.approx(gentle.minutes, rel=1e-2)
    failed = RunOutcome("sft--1", FIRST_SEED, status=1, seconds=0.0, error="why")
    comparison = write_results(folder, [], measure="logp", failed_tries=[failed])
    assert comparison.missing == {"search: sft--1, seed 1000": "why"}
