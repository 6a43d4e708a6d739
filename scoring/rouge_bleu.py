"""ROUGE and BLEU of predicted impressions, as the RadSum shared tasks report them (no torch).

ROUGE is the arithmetic mean of the per-report F1, not the bootstrap median some scripts print, and
rougeLsum is "as published": sentences split at newlines only. `rouge_score_rs` gives the very bits
of Google's `rouge_score` (golden test), faster. BLEU is corpus sacreBLEU with its defaults (13a).
Shape: N reports; predictions[i] is scored against references[i].
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import sacrebleu
from rouge_score_rs import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRICS = (*ROUGE, "bleu")


class BleuScore(NamedTuple):
    """Corpus BLEU; `score` and the four n-gram `precisions` are percentages."""

    score: float
    brevity_penalty: float
    length_ratio: float  # prediction tokens / reference tokens; below 1 the brevity penalty acts
    precisions: tuple[float, ...]
    signature: str


def rouge(
    predictions: Sequence[str], references: Sequence[str], *, stemmer: bool = True
) -> dict[str, np.ndarray]:
    """F1 in [0, 1] of each report, one array (N,) per name in ROUGE; ValueError if N is 0."""
    _check_pairs(predictions, references)
    scorer = RougeScorer(ROUGE, use_stemmer=stemmer)
    results = scorer.score_batch(references, predictions)
    return {name: np.array([result[name].fmeasure for result in results]) for name in ROUGE}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> BleuScore:
    """Corpus BLEU of N reports, one reference each; ValueError if N is 0."""
    _check_pairs(predictions, references)
    metric = sacrebleu.BLEU()
    result = metric.corpus_score(list(predictions), [list(references)])
    return BleuScore(
        score=result.score,
        brevity_penalty=result.bp,
        length_ratio=result.ratio,
        precisions=tuple(result.precisions),
        signature=str(metric.get_signature()),
    )


def scores(
    predictions: Sequence[str], references: Sequence[str], *, stemmer: bool = True
) -> dict[str, float]:
    """Every name in METRICS, in percent: plain mean of the reports' F1, and corpus BLEU."""
    per_report = rouge(predictions, references, stemmer=stemmer)
    means = {name: 100 * float(values.mean()) for name, values in per_report.items()}
    return {**means, "bleu": bleu(predictions, references).score}


def signature(stemmer: bool) -> dict[str, str]:
    """All that two runs must share for their scores to be comparable (versions included)."""
    return {
        "rouge": f"rouge_score_rs {version('rouge_score_rs')}",
        "stemmer": "porter" if stemmer else "none",
        "rougeLsum_splitter": "newline",
        "rouge_mean": "arithmetic",
        "sacrebleu": bleu(["a"], ["a"]).signature,  # sacreBLEU knows nrefs only after a score
    }


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if len(predictions) == 0:
        raise ValueError("no predictions to score: the mean over 0 reports does not exist")
