"""Systems that understand nothing; each table of scores carries them.

  copy               the findings, unchanged: what plain overlap with the input earns
  lead               the first words of the findings, as many as an impression usually has
  most_frequent      the commonest training impression: reports are mostly normal, so it scores
                     high (ROUGE-1 48 on the Indiana test split)
  nearest_neighbour  the impression of the most similar training report (TF-IDF): a trained model
                     below it has learned little
  extractive_oracle  the findings' sentences that a reader of the reference would pick: near the
                     best that copying sentences can reach (of 8-word windows where the findings
                     have no punctuation: the commonest form of public copies)

Shapes: N reports; every baseline returns N impressions.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rouge_score_rs import RougeScorer

from report2impression.scoring import placeholders, splitter

BASELINES = ("copy", "lead", "most_frequent", "nearest_neighbour", "extractive_oracle")
CHUNK = 128  # reports compared with all of training at once
WINDOW = 8  # words of a "sentence" where the findings have no punctuation


def outputs(
    prompts: Sequence[str], references: Sequence[str], train: Sequence[tuple[str, str]] | None
) -> dict[str, list[str]]:
    """All baselines by name, those that need training pairs (findings, impression) if there are
    any."""
    made = {"copy": list(prompts)}
    if train:
        impressions = [impression for _, impression in train]
        made["lead"] = lead(prompts, lead_length(impressions))
        made["most_frequent"] = most_frequent(impressions, len(prompts))
        made["nearest_neighbour"] = nearest_neighbour(prompts, train)
    return {**made, "extractive_oracle": extractive_oracle(prompts, references)}


def explained(train: Sequence[tuple[str, str]] | None) -> dict[str, str]:
    """What stands behind each baseline's name, in a few words for the reader of a table."""
    told = {
        "copy": "the findings, unchanged",
        "extractive_oracle": "the findings' sentences that fit the reference best (it is given)",
    }
    if train:
        k = lead_length(impression for _, impression in train)
        told |= {
            "lead": f"the findings' first {k} words, the median length of training impressions",
            "most_frequent": "the commonest training impression, for every report",
            "nearest_neighbour": "the impression of the training report nearest by TF-IDF",
        }
    return {name: told[name] for name in BASELINES if name in told}


def lead_length(train_impressions: Iterable[str]) -> int:
    """The median number of words of the training impressions, at least 1."""
    return max(1, round(statistics.median(len(text.split()) for text in train_impressions)))


def lead(prompts: Iterable[str], n_words: int) -> list[str]:
    """The first `n_words` words of the findings."""
    return [" ".join(prompt.split()[:n_words]) for prompt in prompts]


def most_frequent(train_impressions: Iterable[str], n: int) -> list[str]:
    """The commonest training impression, `n` times; of equally common ones the first seen."""
    return [Counter(train_impressions).most_common(1)[0][0]] * n


def nearest_neighbour(prompts: Sequence[str], train: Sequence[tuple[str, str]]) -> list[str]:
    """The impression of the training findings with the largest TF-IDF cosine (words and pairs of
    words, lower case, no punctuation, one sign for any placeholder); of equals the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to load

    vectors = TfidfVectorizer(ngram_range=(1, 2), preprocessor=_plain, dtype=np.float32)
    try:
        known = vectors.fit_transform([prompt for prompt, _ in train]).T.tocsr()
    except ValueError:  # not one word in all of the findings: all are equally near
        return [train[0][1]] * len(prompts)
    wanted = vectors.transform(prompts)
    chosen: list[int] = []
    for start in range(0, len(prompts), CHUNK):
        similarity = wanted[start : start + CHUNK] @ known
        chosen += np.asarray(similarity.argmax(axis=1)).ravel().tolist()
    return [train[i][1] for i in chosen]


def _plain(text: str) -> str:
    """Placeholders of any data set become one word, else what is no letter or digit a blank."""
    return re.sub(r"[^\w]+", " ", placeholders.replaced(text).lower())


def extractive_oracle(prompts: Sequence[str], references: Sequence[str]) -> list[str]:
    """Sentences picked one by one while ROUGE-1 + ROUGE-2 against the reference grows (Nallapati et
    al. 2017, there with ROUGE-1), in the findings' order; of equals the first."""
    scorer = RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
    candidates = [_sentences(prompt) for prompt in prompts]
    picked: list[tuple[int, ...]] = [()] * len(prompts)
    reached = [0.0] * len(prompts)
    growing = set(range(len(prompts)))
    while growing:  # one call scores every choice of every report that still grows
        trials = [
            (i, tuple(sorted((*picked[i], unit))))
            for i in sorted(growing)
            for unit in range(len(candidates[i]))
            if unit not in picked[i]
        ]
        texts = [" ".join(candidates[i][unit] for unit in units) for i, units in trials]
        found = scorer.score_batch([references[i] for i, _ in trials], texts) if trials else []
        growing = set()
        for (i, units), score in zip(trials, found, strict=True):
            value = score["rouge1"].fmeasure + score["rouge2"].fmeasure
            if value > reached[i]:
                picked[i], reached[i] = units, value
                growing.add(i)
    return [
        " ".join(units[k] for k in chosen) for units, chosen in zip(candidates, picked, strict=True)
    ]


def _sentences(text: str) -> list[str]:
    """The findings' sentences; windows of WINDOW words where nothing tells them apart."""
    if len(units := splitter.units(text)) > 1:
        return units
    words = text.split()
    return [" ".join(words[i : i + WINDOW]) for i in range(0, len(words), WINDOW)]
