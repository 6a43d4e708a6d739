"""Scores equal to the reference libraries to the last bit, by hand, and on the Indiana reports."""

import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from report2impression.scoring import baselines, splitter
from report2impression.scoring.guard_rails import of_scores
from report2impression.scoring.rouge_bleu import (
    ALL_METRICS,
    ALL_ROUGE,
    COLUMNS,
    METRICS,
    ROUGE,
    SPLIT,
    bleu_of_counts,
    metrics_of_sums,
    rouge,
    scores,
    signature,
    statistics,
)

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


def numbered(texts: list[str]) -> list[str]:
    """Every third text as a numbered list with stops, every seventh on several lines."""
    found = []
    for i, text in enumerate(texts):
        parts = [" ".join(text.split()[k : k + 4]) for k in range(0, len(text.split()), 4)]
        if i % 3 == 0:
            text = " ".join(f"{k}. {part}." for k, part in enumerate(parts, 1))
        elif i % 7 == 0:
            text = "\n".join(parts)
        found.append(text)
    return found


# ROUGE


def largest_differences(n: int, stemmer: bool) -> dict[str, float]:
    """Ours minus the reference libraries' on n pairs, at most; all kinds of texts."""
    predictions, references = map(numbered, random_pairs(n, seed=17 + stemmer))
    ours = statistics(predictions, references, stemmer=stemmer)
    golden = RougeScorer(ROUGE, use_stemmer=stemmer)
    sacre = sacrebleu.BLEU(effective_order=True)
    found = dict.fromkeys((*ALL_ROUGE, "bleu counts"), 0.0)
    n_lines = n_split = 0
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        theirs = {k: v.fmeasure for k, v in golden.score(reference, prediction).items()}
        lines = ["\n".join(splitter.units(text)) for text in (reference, prediction)]
        theirs[SPLIT] = golden.score(*lines)["rougeLsum"].fmeasure
        for name in ALL_ROUGE:
            found[name] = max(found[name], abs(ours.rouge[name][i] - theirs[name]))
        one = sacre.corpus_score([prediction], [[reference]])
        counts = np.array([one.sys_len, one.ref_len, *one.counts, *one.totals])
        found["bleu counts"] = max(found["bleu counts"], abs(ours.bleu[i] - counts).max())
        n_lines += theirs["rougeLsum"] != theirs["rougeL"]
        n_split += theirs[SPLIT] != theirs["rougeLsum"]
    assert n_lines > n / 100 and n_split > n / 100, "the pairs prove too little"
    assert "" in predictions and "" in references
    whole = sacrebleu.corpus_bleu(predictions, [references])
    score = ours.bleu_score()
    found["bleu"] = abs(score.score - whole.score) + abs(score.bp - whole.bp)
    found["precisions"] = max(np.abs(np.subtract(score.precisions, whole.precisions)))
    return found


@pytest.mark.parametrize("stemmer", [True, False])
def test_figures_are_those_of_the_reference_libraries(stemmer):
    assert set(largest_differences(800, stemmer).values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("stemmer", [True, False])
def test_figures_are_those_of_the_reference_libraries_on_10000_pairs(stemmer):
    assert set(largest_differences(10_000, stemmer).values()) == {0.0}


def test_lsum_of_items_on_one_line_needs_the_splitter():
    """The same two items in another order: found one by one only after splitting."""
    one = statistics(
        ["1. no fracture seen. 2. lung nodule."], ["1. lung nodule. 2. no fracture seen."]
    )
    assert one.rouge["rougeL"][0] == one.rouge["rougeLsum"][0] < one.rouge[SPLIT][0]


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


def test_words_of_any_script():
    """A golden one: words as letters of their own alphabet are what words of a-z are."""
    latin = [("the large mass", "a large mass lies"), ("no mass", "mass"), ("new", "old")]
    cyrillic = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопқрстувщхыз")
    translated = [[text.translate(cyrillic) for text in pair] for pair in latin]
    wanted = rouge(*zip(*latin, strict=True), stemmer=False)
    ours = rouge(*zip(*translated, strict=True), tokens="unicode")
    assert all(np.array_equal(ours[name], wanted[name]) for name in ROUGE)
    assert rouge(*zip(*translated, strict=True))["rouge1"].sum() == 0


def test_unicode_words_are_whole_and_equal_in_any_case_and_form():
    def f1(a, b, **how):
        return rouge([a], [b], **how)["rouge1"][0]

    assert f1("Größe", "grÖSSE", tokens="unicode") == 1.0
    assert f1("gro\u0308\u00dfe", "größe", tokens="unicode") == 1.0  # two ways to write it
    assert f1("größe", "gräte", tokens="unicode") == 0.0 < f1("größe", "gräte")
    predictions, references = random_pairs(200, seed=7)
    plain = rouge(predictions, references)
    told = rouge(predictions, references, tokens="unicode")
    ascii_only = [p.isascii() and r.isascii() for p, r in zip(predictions, references, strict=True)]
    assert any(ascii_only)
    assert np.array_equal(plain["rougeL"][ascii_only], told["rougeL"][ascii_only])


@pytest.mark.parametrize(("texts", "is_told"), [(["größe", "a"], True), (["a"] * 40, False)])
def test_words_that_rouge_drops_are_told(texts, is_told):
    found = {"lora": statistics(texts, texts)}
    rails = of_scores(found, texts, {"lora": texts})
    assert ("words_cut" in {rail["name"] for rail in rails}) == is_told
    assert not {"words_cut", "not_for_rouge"} & {
        rail["name"] for rail in of_scores(found, texts, {"lora": texts}, "unicode")
    }


def test_rouge_lsum_splits_at_newlines_only():
    swapped = rouge(["b c. a d", "b c\na d"], ["a d. b c", "a d\nb c"])
    assert swapped["rougeLsum"].tolist() == [0.5, 1.0]
    assert swapped["rougeL"].tolist() == [0.5, 0.5]


# BLEU


@given(st.lists(st.lists(st.integers(0, 40), min_size=10, max_size=10), min_size=1), st.booleans())
def test_bleu_of_many_sums_is_sacrebleus(rows, effective):
    counts = np.array(rows)
    counts[:, 6:] = np.sort(counts[:, 6:], axis=1)[:, ::-1]  # fewer long n-grams than short ones
    counts[:, 2:6] = np.minimum(counts[:, 2:6], counts[:, 6:])
    counts[:, 0] = counts[:, 6]
    theirs = [
        sacrebleu.BLEU.compute_bleu(
            row[2:6], row[6:], row[0], row[1], smooth_method="exp", effective_order=effective
        ).score
        for row in counts.tolist()
    ]
    ours = bleu_of_counts(counts, effective_order=effective)
    assert ours.tolist() == pytest.approx(theirs, rel=1e-12, abs=1e-12)


# All of them


def test_statistics_give_the_scores_to_the_last_bit():
    predictions, references = map(numbered, random_pairs(400, seed=9))
    found = statistics(predictions, references)
    figures, direct = found.figures(), scores(predictions, references)
    assert tuple(figures) == ALL_METRICS and {name: figures[name] for name in METRICS} == direct
    part = found.take([5, 7, 5])
    again = statistics([predictions[i] for i in (5, 7, 5)], [references[i] for i in (5, 7, 5)])
    assert part.figures() == again.figures() and len(part) == 3


def test_sums_of_the_columns_give_the_scores():
    predictions, references = random_pairs(400, seed=9)
    found = statistics(predictions, references)
    assert found.columns().shape == (400, len(COLUMNS))
    sums = np.stack([found.columns().sum(axis=0), found.take(range(50)).columns().sum(axis=0)])
    both = metrics_of_sums(sums[:1], 400)[0], metrics_of_sums(sums[1], 50)
    for row, expected in zip(both, (found, found.take(range(50))), strict=True):
        assert dict(zip(ALL_METRICS, row, strict=True)) == pytest.approx(expected.figures())


def test_perfect_predictions_score_100():
    texts = ["no acute cardiopulmonary abnormality", "right lower lobe pneumonia is improving"]
    assert scores(texts, texts) == pytest.approx(dict.fromkeys(METRICS, 100.0))


def test_scores_are_plain_means_in_percent():
    predictions, references = random_pairs(300, seed=3)
    result, per_report = scores(predictions, references), rouge(predictions, references)
    assert tuple(result) == METRICS
    assert all(result[name] == 100 * per_report[name].mean() for name in ROUGE)
    assert result["bleu"] == sacrebleu.corpus_bleu(predictions, [references]).score


@pytest.mark.parametrize("function", [rouge, scores, statistics])
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


def test_most_frequent_and_its_ties():
    assert baselines.most_frequent(["x", "y", "y"], 3) == ["y", "y", "y"]
    assert baselines.most_frequent(["b", "a", "a", "b", "c"], 2) == ["b", "b"]
    assert baselines.most_frequent(["a"], 0) == []


def column(split: str, name: str) -> list[str]:
    lines = (INDIANA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


def test_lead_is_as_long_as_impressions_are():
    assert baselines.lead_length(["a b c", "a", "a b c d e"]) == 3
    assert baselines.lead_length([""]) == 1
    assert baselines.lead(["a b  c d", "a", ""], 3) == ["a b c", "a", ""]


TRAIN = [
    ("The lungs are clear. No effusion.", "normal"),
    ("There is a large left pleural effusion.", "effusion"),
    ("Fracture of the left 5th rib.", "rib fracture"),
]


def test_the_nearest_neighbour_shares_rare_words_and_pairs_of_words():
    prompts = ["LUNGS clear", "pleural fluid, an effusion", "a fracture, [**Name**] xxxx", "?"]
    expected = ["normal", "effusion", "rib fracture", "normal"]
    assert baselines.nearest_neighbour(prompts, TRAIN) == expected
    assert baselines.nearest_neighbour(["a", "b"], [("", "first"), ("!", "x")]) == ["first"] * 2
    assert baselines.nearest_neighbour(prompts * 50, TRAIN) == expected * 50  # in several chunks


@pytest.mark.parametrize("sign", ["____", "XXXX", "[**2101-3-4**]", "xxxxx"])
def test_placeholders_are_one_word_whatever_they_look_like(sign):
    train = [("seen on ____ again", "with"), ("seen on again", "without")]
    assert baselines.nearest_neighbour([f"seen on {sign} again"], train) == ["with"]


def test_the_oracle_picks_what_the_reference_says_in_the_order_of_the_findings():
    findings = "Heart is normal. No effusion. There is a fracture of the rib. Lungs are clear."
    best = baselines.extractive_oracle
    assert best([findings], ["fracture of the rib. no effusion."]) == [
        "No effusion. There is a fracture of the rib."
    ]
    assert best([findings, findings], ["clear lungs", "pneumonia"]) == ["Lungs are clear.", ""]
    assert best(["", "a b"], ["a", ""]) == ["", ""]


@given(st.lists(st.tuples(st.text("ab. ", max_size=30), st.text("ab ", max_size=9)), max_size=4))
def test_no_sentence_beats_the_oracle(pairs):
    prompts, references = [p for p, _ in pairs], [r for _, r in pairs]
    for prompt, reference, chosen in zip(
        prompts, references, baselines.extractive_oracle(prompts, references), strict=True
    ):
        texts = [*baselines._sentences(prompt), chosen]
        f1 = rouge(texts, [reference] * len(texts))
        both = f1["rouge1"] + f1["rouge2"]
        assert both[-1] == both.max()


def test_long_findings_without_punctuation_are_cut_into_windows():
    words = [f"w{i}" for i in range(30)]
    assert baselines.extractive_oracle([" ".join(words)], ["w9"]) == [" ".join(words[8:16])]


def test_baselines_that_could_be_made():
    made = baselines.outputs(["a b"], ["a"], TRAIN)
    assert set(made) == set(baselines.BASELINES) and all(len(v) == 1 for v in made.values())
    assert set(baselines.outputs(["a b"], ["a"], None)) == {"copy", "extractive_oracle"}


@pytest.mark.parametrize("train", [TRAIN, None])
def test_baselines_are_explained(train):
    told = baselines.explained(train)
    assert list(told) == [
        n for n in baselines.BASELINES if n in baselines.outputs(["a"], ["a"], train)
    ]
    assert train is None or "first 1 words" in told["lead"]


# Items and sentences


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", []),
        ("no fracture", ["no fracture"]),
        ("1. no fracture. 2. lung nodule.", ["1. no fracture.", "2. lung nodule."]),
        ("1. no fracture.\n2. lung nodule.", ["1. no fracture.", "2. lung nodule."]),
        ("1) no fracture 2) nodule 3) a", ["1) no fracture", "2) nodule", "3) a"]),
        ("1 no fracture 2 8 mm nodule 3 a", ["1 no fracture", "2 8 mm nodule", "3 a"]),
        ("impression: 1. clear. stable. 2. b", ["impression:", "1. clear.", "stable.", "2. b"]),
        ("1 nodule of 2 cm", ["1 nodule of 2 cm"]),
        ("1 nodule less than 2 and a cyst", ["1 nodule less than 2 and a cyst"]),
        ("1 clear 2 days after surgery", ["1 clear 2 days after surgery"]),
        ("nodule of 1.5 cm. stable.", ["nodule of 1.5 cm.", "stable."]),
        ("s. aureus, see dr. smith. stable", ["s. aureus, see dr. smith.", "stable"]),
        ("2. b 1. a", ["2. b 1. a"]),
        ("1. only one item", ["1. only one item"]),
        ("1. a 3. c 2. b", ["1. a 3. c", "2. b"]),
    ],
)
def test_units(text, units):
    assert splitter.units(text) == units


def test_items_keep_their_sentences():
    text = "1. clear. stable. 2. nodule."
    assert splitter.items(text) == ["1. clear. stable.", "2. nodule."]
    assert splitter.sentences("all clear. no change") == ["all clear.", "no change"]


@given(st.text(st.sampled_from("12 3.)ab\n;x\u2028"), max_size=60) | st.text(max_size=40))
def test_no_word_is_lost_in_splitting(text):
    assert " ".join(splitter.units(text)).split() == text.split()
    assert all(unit and unit == unit.strip() for unit in splitter.units(text))


@given(st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=2, max_size=20))
def test_every_dotted_list_is_found(parts):
    text = " ".join(f"{i}. {part.strip()}" for i, part in enumerate(parts, 1))
    assert len(splitter.items(text)) == len(parts)


@pytest.mark.skipif(not INDIANA.is_dir(), reason="the Indiana reports are not beside the checkout")
def test_baselines_on_the_indiana_test_split():
    references = column("test", "impressions")
    prompts, known = column("test", "prompt"), column("train", "impressions")
    made = baselines.outputs(
        prompts, references, list(zip(column("train", "prompt"), known, strict=True))
    )
    shown = ("rouge1", "rouge2", "rougeL", "bleu")
    for name, expected in (
        ("most_frequent", [48.4, 37.7, 48.4, 9.6]),
        ("copy", [14.9, 5.1, 13, 4.4]),
        ("nearest_neighbour", [58.8, 51.3, 58.5, 24.4]),
    ):
        result = scores(made[name], references)
        assert [round(result[name], 1) for name in shown] == expected
