"""Scores equal to the reference libraries to the last bit, by hand, and on the Indiana reports."""

import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from scoring import baselines
from scoring.rouge_bleu import METRICS, ROUGE, bleu, rouge, scores, signature

SHARED = Path(__file__).parents[1].parent / "shared"
INDIANA = SHARED / "data" / "iu_xray"
VOCABULARY = (
    "no acute cardiopulmonary abnormality abnormalities focal consolidation pleural effusions "
    "pneumothorax pneumothoraces mediastinal silhouette is are stable unchanged unremarkable "
    "degenerative change changes osseous structures visualized improving improved x-____ ____ non- "
    "well-expanded 1 2 3.5 10mm t8 T12 C5-C6 Cardiomegaly EFFUSION. (left), right; dying news "
    "effusion opacity opacities improve improves skies generously épanchement größe 肺炎 ½ "
    "naïve \u212a \u0130 \n \t \u2028 \U0001f600"
)


def draw(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choices(words, k=rng.choice([0, 1, 2, 3, 8, 15, 30])))


def random_pairs(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Pairs drawn from 2-12 neighbouring words, so that they overlap, repeat and share stems."""
    rng = random.Random(seed)
    vocabulary = VOCABULARY.split(" ")
    starts = [rng.randrange(len(vocabulary) - 1) for _ in range(n)]
    choices = [vocabulary[start : start + rng.choice([2, 5, 12])] for start in starts]
    return [draw(rng, words) for words in choices], [draw(rng, words) for words in choices]


# ROUGE


@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_is_bit_equal_to_rouge_score(stemmer):
    predictions, references = random_pairs(2000, seed=5 + stemmer)
    ours = rouge(predictions, references, stemmer=stemmer)
    golden = RougeScorer(ROUGE, use_stemmer=stemmer)
    pairs = zip(references, predictions, strict=True)
    expected = [golden.score(reference, prediction) for reference, prediction in pairs]
    for name in ROUGE:
        theirs = np.array([row[name].fmeasure for row in expected])
        assert ours[name].shape == (2000,)
        assert np.abs(ours[name] - theirs).max() == 0.0, name
        assert len(np.unique(theirs)) > 50 and theirs.max() == 1.0, "the pairs prove too little"


def test_the_stemmer_matters_in_the_golden_pairs():
    predictions, references = random_pairs(2000, seed=6)
    with_stemmer, without = (rouge(predictions, references, stemmer=s) for s in (True, False))
    assert (with_stemmer["rouge1"] != without["rouge1"]).sum() > 20  # else equality shows little


def test_rouge_by_hand():
    """3 of 4 predicted words stand in the reference of 5; 2 of them in order; bigram "the cat"."""
    result = rouge(["cat mat the cat"], ["the cat on a mat"])
    # cat (1 of 2), mat, the = 3 hits, P = 3/4, R = 3/5; R-L: "cat mat" or "the cat" = 2.
    assert result["rouge1"][0] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5), abs=1e-12)
    assert result["rougeL"][0] == pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5), abs=1e-12)
    assert result["rouge2"][0] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4), abs=1e-12)


def test_stemmer_is_on_by_default():
    assert rouge(["effusions"], ["effusion"])["rouge1"][0] == 1.0
    assert rouge(["effusions"], ["effusion"], stemmer=False)["rouge1"][0] == 0.0


def test_rouge_lsum_splits_at_newlines_only():
    swapped = rouge(["b c. a d", "b c\na d"], ["a d. b c", "a d\nb c"])
    assert swapped["rougeLsum"].tolist() == [0.5, 1.0]
    assert swapped["rougeL"].tolist() == [0.5, 0.5]


# BLEU


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_sacrebleu(seed):
    predictions, references = random_pairs(200, seed)
    ours = bleu(predictions, references)
    theirs = sacrebleu.corpus_bleu(predictions, [references])
    assert ours[:3] == (theirs.score, theirs.bp, theirs.sys_len / theirs.ref_len)
    assert ours.precisions == tuple(theirs.precisions)
    assert 1 < ours.score < 99


def test_bleu_brevity_penalty_of_a_half_as_long_prediction():
    result = bleu(["no pleural effusion seen"], ["no pleural effusion seen in either lung today"])
    assert result.length_ratio == 0.5
    assert result.precisions == (100.0,) * 4
    assert result.brevity_penalty == pytest.approx(np.exp(1 - 2))
    assert result.score == pytest.approx(100 * np.exp(-1))


# All of them


def test_perfect_predictions_score_100():
    texts = ["no acute cardiopulmonary abnormality", "right lower lobe pneumonia is improving"]
    assert scores(texts, texts) == pytest.approx(dict.fromkeys(METRICS, 100.0))


def test_scores_are_plain_means_in_percent():
    predictions, references = random_pairs(300, seed=3)
    for stemmer in (True, False):
        result = scores(predictions, references, stemmer=stemmer)
        per_report = rouge(predictions, references, stemmer=stemmer)
        assert tuple(result) == METRICS
        assert all(result[name] == 100 * per_report[name].mean() for name in ROUGE)
        assert result["bleu"] == bleu(predictions, references).score


@pytest.mark.parametrize("function", [rouge, bleu, scores])
def test_nothing_to_score_is_an_error(function):
    with pytest.raises(ValueError, match="no predictions"):
        function([], [])
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        function(["a", "b"], ["a"])


def test_signature_names_libraries_versions_and_options():
    told = signature(True)
    assert version("rouge_score_rs") in told["rouge"]
    assert f"version:{version('sacrebleu')}" in told["sacrebleu"]
    assert "tok:13a" in told["sacrebleu"] and "nrefs:1" in told["sacrebleu"]
    assert told["rougeLsum_splitter"] == "newline"
    assert (told["stemmer"], signature(False)["stemmer"]) == ("porter", "none")
    assert all(isinstance(value, str) for value in told.values())


# Baselines


def test_copy_returns_the_prompts():
    assert baselines.copy(["a b", ""]) == ["a b", ""]


def test_most_frequent_and_its_ties():
    assert baselines.most_frequent(["x", "y", "y"], 3) == ["y", "y", "y"]
    assert baselines.most_frequent(["b", "a", "a", "b", "c"], 2) == ["b", "b"]
    assert baselines.most_frequent(["a"], 0) == []
    with pytest.raises(ValueError, match="no training impressions"):
        baselines.most_frequent([], 1)


def column(split: str, name: str) -> list[str]:
    lines = (INDIANA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


@pytest.mark.skipif(not INDIANA.is_dir(), reason="the Indiana reports are not beside the checkout")
def test_baselines_on_the_indiana_test_split():
    references = column("test", "impressions")
    constant = baselines.most_frequent(column("train", "impressions"), len(references))
    copied = baselines.copy(column("test", "prompt"))
    shown = ("rouge1", "rouge2", "rougeL", "bleu")
    for predictions, expected in (
        (constant, [48.4, 37.7, 48.4, 9.6]),
        (copied, [14.9, 5.1, 13, 4.4]),
    ):
        result = scores(predictions, references)
        assert [round(result[name], 1) for name in shown] == expected
