"""Log-odds with a prior, worked by hand."""

import math

import pytest

from nrt.analysis.report.vocabulary import PRIOR_WORDS, compare_words, log_odds


def test_log_odds_by_hand():
    """Texts of 4 and 6 words, with 3 times "a" and once: prior α_a = 500 · 4/10 = 200.

    δ = log 203/(504 − 203) − log 201/(506 − 201) = −.39390 + .41705 = .02305;
    var = 1/203 + 1/201 = .0099012; z = .2316.
    """
    assert PRIOR_WORDS == 500
    words = {word.word: word for word in log_odds({"a": 3, "b": 1}, {"a": 1, "b": 5})}
    delta = math.log(203 / 301) - math.log(201 / 305)
    assert words["a"].log_odds == pytest.approx(delta)
    assert words["a"].log_odds == pytest.approx(0.02308, abs=1e-4)
    assert words["a"].z == pytest.approx(delta / math.sqrt(1 / 203 + 1 / 201))
    assert words["b"].log_odds == pytest.approx(
        -delta
    )  # with two words, the odds of one are the inverse of the other's
    assert (words["a"].in_traces, words["a"].in_answers) == (3, 1)


def test_distinctive_words_of_traces():
    result = compare_words(["Let us see : let us think <eos>"] * 20, ["the answer is 4 ."] * 20)
    assert {word.word for word in result.risen} == {"let", "us", "see", "think"}
    assert {word.word for word in result.fallen} == {"the", "answer", "is", "4"}
    assert result.risen[0].word in ("let", "us")
    assert (result.trace_words, result.answer_words) == (120, 80)
    assert result.trace_cloud[0].in_traces == 40


def test_texts_without_words():
    result = compare_words(["", "…"], ["4"])
    assert result.trace_words == 0
    assert result.risen == result.fallen == result.trace_cloud == ()
