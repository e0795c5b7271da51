"""Documents have the words, the split and the shares of the mixture, and no marker."""

from itertools import islice
from random import Random

import pytest

from nrt.config import MarkersConfig
from nrt.errors import InputError
from nrt.lab.corpus import BOS, CHATTER, EOS, MIXTURES, VOCABULARY, documents
from nrt.lab.world import FAMILIES, SPLITS, all_problems, draw_problem


@pytest.mark.parametrize("mixture", MIXTURES)
def test_words_shares_and_split(mixture: str) -> None:
    texts = list(islice(documents(0, mixture), 3000))
    assert texts == list(islice(documents(0, mixture), 3000))
    assert {word for text in texts for word in text.split(" ")} <= set(VOCABULARY)

    walks = [*all_problems("sum", "corpus"), *all_problems("bot", "corpus")]
    chains = {problem.chain for problem in walks}
    works = {problem.work for problem in walks}
    recall_questions = {problem.question for problem in all_problems("recall", "corpus")}
    counts = dict.fromkeys(("chatter", "question", "worked", "direct"), 0)
    for text in texts:
        assert text.startswith(f"{BOS} ")
        assert text.endswith(f" {EOS}")
        lines = text.removeprefix(f"{BOS} ").removesuffix(f" {EOS}").split(" \n ")
        if "asks" not in lines[0]:
            assert len(lines) == 1
            counts["chatter"] += 1
            continue
        question = lines[0]
        if "where" in question:
            assert question in recall_questions
        else:
            start, *steps = question.split(" : begin ")[1].removesuffix(" ?").split(" ; then ")
            assert " ".join([start.split(" ")[1], *steps]) in chains
        words = lines[1].removesuffix(" .").split(" ")
        if lines[1] in works:
            counts["worked"] += 1
        elif len(words) >= 4 and set(words) <= set(CHATTER):
            counts["question"] += 1
        else:
            counts["direct"] += 1

    shares = MIXTURES[mixture]
    assert counts["chatter"] / 3000 == pytest.approx(shares["chatter"], abs=0.02)
    assert counts["question"] / 3000 == pytest.approx(shares["question"], abs=0.03)
    # recall (20 %) has no work, so its worked documents are direct answers
    assert counts["worked"] / 3000 == pytest.approx(0.8 * shares["worked"], abs=0.03)


def test_shares_are_those_of_the_documentation() -> None:
    assert [list(shares.values()) for shares in MIXTURES.values()] == [
        [0.30, 0.35, 0.25, 0.10],
        [0.50, 0.08, 0.32, 0.10],
        [0.52, 0.03, 0.35, 0.10],
        [0.53, 0.01, 0.36, 0.10],
    ]


def test_vocabulary_covers_all_problems_and_has_no_marker() -> None:
    rng, known = Random(0), set(VOCABULARY)
    for split in SPLITS:
        for family in FAMILIES:
            for _ in range(300):
                problem = draw_problem(rng, split, {family: 1.0})
                assert set(f"{problem.question} {problem.answer}".split(" ")) <= known
                assert set(problem.work.split()) <= known
    markers = MarkersConfig()
    assert not {markers.start, markers.end} & known
    assert len(VOCABULARY) == len(known)


def test_unknown_mixture_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'latent'"):
        next(documents(0, "latnet"))
