"""ROUGE and BLEU of predicted impressions, as the RadSum shared tasks report them (no torch).

ROUGE is the arithmetic mean of the per-report F1, not the bootstrap median some scripts print, and
rougeLsum is "as published": sentences split at newlines only, which impressions do not have.
rougeLsum_split is the same measure after our own splitter. ROUGE as published sees a-z and digits
only, and reads "größe" as "gr" and "e"; with `tokens` "unicode" a word is a word in any script.
`rouge_score_rs` gives the very bits
of Google's `rouge_score` (golden test), faster. BLEU is corpus sacreBLEU with its defaults (13a).

Both are functions of sums over reports: of F1, and of n-gram counts. `Statistics` keeps each
report's terms of these sums, so that a resample of the reports costs additions, not a new scoring.
Shapes: N reports; predictions[i] is scored against references[i]. C = 15 columns of statistics.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from rouge_score_rs import RougeScorer
from sacrebleu.metrics.bleu import BLEUScore

from report2impression.scoring import splitter

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
TokenKind = Literal["published", "unicode"]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRICS = (*ROUGE, "bleu")
SPLIT = "rougeLsum_split"
ALL_ROUGE = (*ROUGE, SPLIT)
ALL_METRICS = (*METRICS, SPLIT)
# sacreBLEU's order: tokens of the prediction and of the reference, n-gram hits, n-grams, n = 1..4
BLEU_COUNTS = (
    *("prediction_tokens", "reference_tokens"),
    *(f"{kind}_{n}" for kind in ("hits", "ngrams") for n in (1, 2, 3, 4)),
)
COLUMNS = (*ALL_ROUGE, *BLEU_COUNTS)


@dataclass(frozen=True)
class Statistics:
    """What a system's N outputs add to every figure: no text, and nothing else is needed."""

    rouge: dict[str, Floats]
    """F1 in [0, 1] of each report, (N,) per name in ALL_ROUGE."""
    bleu: Counts
    """(N, 10) in the order of BLEU_COUNTS."""

    def __len__(self) -> int:
        return len(self.bleu)

    def take(self, indices: Sequence[int] | Counts) -> "Statistics":
        chosen = np.asarray(indices, dtype=np.int64)
        return Statistics({k: v[chosen] for k, v in self.rouge.items()}, self.bleu[chosen])

    def columns(self) -> Floats:
        """(N, C), in the order of COLUMNS."""
        return np.column_stack([*(self.rouge[name] for name in ALL_ROUGE), self.bleu])

    def figures(self) -> dict[str, float]:
        """Every name in ALL_METRICS in percent, equal to `scores` to the last bit."""
        means = {name: 100 * float(self.rouge[name].mean()) for name in ALL_ROUGE}
        return {name: means.get(name, self.bleu_score().score) for name in ALL_METRICS}

    def bleu_score(self) -> BLEUScore:
        """Corpus BLEU from the summed counts, by sacreBLEU's own formula."""
        made, wanted, *ngrams = (int(count) for count in self.bleu.sum(axis=0))
        return sacrebleu.BLEU.compute_bleu(
            ngrams[:4], ngrams[4:], made, wanted, smooth_method="exp"
        )


def statistics(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    stemmer: bool = True,
    tokens: TokenKind = "published",
) -> Statistics:
    """Each report's terms of all figures; ValueError if N is 0."""
    f1 = rouge(predictions, references, stemmer=stemmer, tokens=tokens)
    lines = [splitter.one_per_line(seen(texts, tokens)) for texts in (references, predictions)]
    split = RougeScorer(["rougeLsum"], use_stemmer=stemmer).score_batch(*lines)
    f1[SPLIT] = np.array([result["rougeLsum"].fmeasure for result in split])
    metric = sacrebleu.BLEU(effective_order=True)  # else it warns; the counts are the same
    found = map(metric.sentence_score, predictions, ([reference] for reference in references))
    counts = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found]
    return Statistics(f1, np.array(counts, dtype=np.int64))


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    stemmer: bool = True,
    tokens: TokenKind = "published",
) -> dict[str, Floats]:
    """F1 in [0, 1] of each report, one array (N,) per name in ROUGE; ValueError if N is 0."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if len(predictions) == 0:
        raise ValueError("no predictions to score: the mean over 0 reports does not exist")
    scorer = RougeScorer(ROUGE, use_stemmer=stemmer)
    results = scorer.score_batch(seen(references, tokens), seen(predictions, tokens))
    return {name: np.array([result[name].fmeasure for result in results]) for name in ROUGE}


def seen(texts: Sequence[str], tokens: TokenKind) -> Sequence[str]:
    """The texts as ROUGE is to see them. "unicode": each word with other letters than a-z as a
    number of its own, so that equal words stay equal, and no stemmer cuts them."""
    if tokens == "published":
        return texts
    return [_WORD.sub(_as_number, unicodedata.normalize("NFKC", text)) for text in texts]


_WORD = re.compile(r"\w+")


def _as_number(word: re.Match[str]) -> str:
    text = word[0]
    return text if text.isascii() else "".join(f"{ord(sign):07d}" for sign in text.casefold())


def scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Every name in METRICS, in percent: plain mean of the reports' F1, and corpus BLEU."""
    per_report = rouge(predictions, references)
    means = {name: 100 * float(values.mean()) for name, values in per_report.items()}
    return {**means, "bleu": sacrebleu.BLEU().corpus_score(predictions, [references]).score}


def metrics_of_sums(sums: Floats, n: int) -> Floats:
    """Sums over n reports of the columns, (..., C) -> percent, (..., 6) as in ALL_METRICS."""
    means = 100 * sums[..., : len(ALL_ROUGE)] / n
    place = METRICS.index("bleu")
    return np.insert(means, place, bleu_of_counts(sums[..., len(ALL_ROUGE) :]), axis=-1)


def bleu_of_counts(counts: Floats | Counts, *, effective_order: bool = False) -> Floats:
    """BLEU in percent of many summed counts at once, (..., 10) -> (...).

    sacreBLEU's formula (Papineni et al. 2002; "exp" smoothing: the k-th order without a hit counts
    as 1 / 2^k hits), equal to it but for rounding (golden test). With `effective_order` orders that
    a short prediction does not have are left out, as for a single report; else they give 0.
    """
    made, wanted = counts[..., 0].astype(float), counts[..., 1].astype(float)
    hits, totals = counts[..., 2:6].astype(float), counts[..., 6:].astype(float)
    exists = totals > 0
    halvings = np.cumsum(exists & (hits == 0), axis=-1)
    smoothed = np.where(hits > 0, hits, 0.5**halvings)
    logs = np.log(np.where(exists, smoothed / np.where(exists, totals, 1), 1))
    orders = exists.sum(axis=-1) if effective_order else 4
    geometric = np.exp(logs.sum(axis=-1) / np.maximum(orders, 1))
    brief = np.exp(np.minimum(0, 1 - wanted / np.maximum(made, 1)))
    defined = (hits > 0).any(axis=-1) & (effective_order | exists.all(axis=-1))
    return np.where(defined, 100 * brief * geometric, 0.0)


def signature(stemmer: bool, tokens: TokenKind = "published") -> dict[str, str]:
    """All that two runs must share for their scores to be comparable (versions included)."""
    return {
        "rouge": f"rouge_score_rs {version('rouge_score_rs')}",
        "stemmer": "porter" if stemmer else "none",
        **({} if tokens == "published" else {"rouge_tokens": tokens}),
        "rougeLsum_splitter": "newline",
        "rougeLsum_split_splitter": splitter.VERSION,
        "rouge_mean": "arithmetic",
        "sacrebleu": _bleu_signature(),
    }


def _bleu_signature() -> str:
    metric = sacrebleu.BLEU()
    metric.corpus_score(["a"], [["a"]])  # it knows nrefs only after a score
    return str(metric.get_signature())
