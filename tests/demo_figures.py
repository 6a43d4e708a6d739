"""A made-up evaluation with likely figures and synthetic texts: what the page is tried on."""

from typing import Any

import numpy as np

from report2impression.reporting.evaluation_page import Case

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "rougeLsum_split", "bleu")
PUBLISHED = {
    "base": dict(zip(METRICS[:4] + METRICS[5:], (24.9, 11.6, 18.2, 18.2, 10.3), strict=True)),
    "lora": dict(zip(METRICS[:4] + METRICS[5:], (32.3, 14.9, 25.5, 25.5, 8.2), strict=True)),
}
MEANS = {
    "base": (24.6, 11.2, 18.0, 18.0, 21.3, 10.1),
    "lora": (36.8, 19.7, 29.4, 29.4, 33.0, 13.2),
    "copy": (21.9, 10.8, 15.4, 15.4, 19.0, 5.1),
    "lead": (17.2, 5.9, 13.1, 13.1, 15.2, 3.9),
    "nearest_neighbour": (26.4, 10.6, 20.9, 20.9, 24.0, 7.7),
    "extractive_oracle": (44.5, 24.9, 34.1, 34.1, 40.8, 15.0),
}
GROUPS = {
    "CT head": 412,
    "CT abdomen-pelvis": 214,
    "MR spine": 131,
    "CT chest": 121,
    "MR head": 74,
    "CT spine": 33,
    "MR abdomen, with and without contrast": 15,
}
SOURCE = (
    "there is a 3 mm nodule in the right upper lobe, unchanged since ____. no pleural effusion. "
    "the heart is normal in size. mild degenerative changes of the thoracic spine."
)
REFERENCE = (
    "1. 3 mm right upper lobe nodule, unchanged since ____. "
    "2. no evidence of pneumonia or effusion."
)
BASE = "there is a 3 mm nodule in the right upper lobe , unchanged since ____ . no effusion ."
LORA = "1. stable 5 mm left upper lobe nodule. 2. no effusion."


def around(mean: float, half: float) -> list[float]:
    return [mean - half, mean + half]


def part(n: int, base: float, lora: float) -> dict[str, Any]:
    half = 38 / n**0.5
    return {
        "n": n,
        "base": {"rougeL": [base, *around(base, half)]},
        "lora": {"rougeL": [lora, *around(lora, half)]},
        "difference": {"rougeL": [lora - base, *around(lora - base, half)]},
    }


def structured(base: float, lora: float) -> dict[str, Any]:
    systems = {"base": base, "lora": lora}
    difference = lora - base
    paired = {"difference": difference, "interval": around(difference, 4), "p": 0.001}
    return {n: {"f1": f, "interval": around(f, 2)} for n, f in systems.items()} | {
        "paired": paired | {"p_holm": 0.002}
    }


def rates(base: float, lora: float, reference: float) -> dict[str, Any]:
    values = {"base": base, "lora": lora, "reference": reference}
    return {
        name: {"per_100": value, "interval": [max(0.0, value - 1.2), value + 1.4]}
        for name, value in values.items()
    }


def paired() -> dict[str, Any]:
    metrics = {}
    for position, metric in enumerate(METRICS):
        difference = MEANS["lora"][position] - MEANS["base"][position]
        metrics[metric] = {
            "difference": difference,
            "interval": around(difference, 1.1),
            "p": 0.0001,
            "p_holm": 0.0006,
            "wins": 702,
            "ties": 41,
            "losses": 257,
            "n_for_1_point": 1210 + 90 * position,
        }
    metrics["bleu"] |= {"p": 0.021, "p_holm": 0.041, "wins": None, "ties": None, "losses": None}
    metrics["bleu"]["n_for_1_point"] = None
    return {"better": "lora", "than": "base", "metrics": metrics}


def figures() -> dict[str, Any]:
    """Like scores.json."""
    scores = {name: dict(zip(METRICS, row, strict=True)) for name, row in MEANS.items()}
    base, lora = scores.pop("base"), scores.pop("lora")
    spread = 4.0
    return {
        "n": 1000,
        "base": base,
        "lora": lora,
        "baselines": {**scores, "most_frequent": None},
        "intervals": {
            name: {m: around(v, 1.2) for m, v in zip(METRICS, row, strict=True)}
            for name, row in MEANS.items()
        },
        "bleu_parts": {
            "base": {"brevity_penalty": 1.0, "length_ratio": 1.31, "precisions": [31.0, 13, 7, 4]},
            "lora": {
                "brevity_penalty": 0.74,
                "length_ratio": 0.77,
                "precisions": [52.0, 25, 14, 9],
            },
        },
        "paired": paired(),
        "breakdown": {
            "group": {
                name: part(n, 18 + spread * np.sin(i), 29 + spread * np.cos(2 * i))
                for i, (name, n) in enumerate(GROUPS.items())
            },
            "source_length": {
                f"{low} to {high} words": part(250, 21 - 2 * i, 34 - 3 * i)
                for i, (low, high) in enumerate([(4, 61), (62, 104), (105, 160), (161, 402)])
            },
            "duplicates": {
                "exact": part(44, 20, 61),
                "near": part(112, 19, 41),
                "new": part(844, 18, 27),
            },
            "reference": {"seen in training": part(131, 17, 58), "new": part(869, 18, 25)},
        },
        "structured": {"laterality": structured(40.0, 60.0)},
        "faithfulness": {
            "measurement": rates(1.9, 4.1, 2.2),
            "laterality": rates(0.8, 3.9, 1.4),
            "level": rates(0.6, 1.7, 0.9),
            "negation": rates(1.2, 2.8, 2.0),
            "comparison": rates(0.9, 6.3, 9.8),
        },
        "guard_rails": [
            {
                "name": "brevity_penalty",
                "system": "lora",
                "value": 0.74,
                "message": "outputs are shorter than the references: allow more with "
                "--max_new_tokens or a length penalty, and read BLEU beside its penalty",
            }
        ],
        "describe": {
            "base": describe(38.2, 31.0, 97.1, 4.0, 3, 12),
            "lora": describe(21.4, 17.0, 71.8, 38.5, 0, 0),
            "copy": describe(118.0, 102.0, 100.0, 0.0, 0, 1000),
            "reference": describe(27.9, 21.0, 66.0, 47.2, 0, 0),
        },
        "signature": {
            "rouge": "rouge_score_rs 0.2.1",
            "stemmer": "porter",
            "rouge_mean": "arithmetic",
        },
        "decoding": {"search": "greedy", "max_new_tokens": 128},
        "sample": {
            "seed": 0,
            "ids_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15",
        },
        "provenance": {
            "adapter_sha256": "60303ae22b998861bce3b28f33eec1be",
            "torch": "2.13.0",
            "n_ranks": 2,
        },
    }


def describe(
    mean: float, median: float, copied: float, new: float, empty: int, equal: int
) -> dict[str, Any]:
    return {
        "words_mean": mean,
        "words_median": median,
        "copy_rate": copied,
        "novel_bigrams": new,
        "empty": empty,
        "equal_to_source": equal,
    }


def curves(n_steps: int = 927) -> list[dict[str, Any]]:
    """Like metrics.jsonl."""
    random = np.random.default_rng(0)
    at = 10 * np.arange(1, n_steps + 1)
    loss = 2.3 + 0.9 * np.exp(-at / (3 * n_steps)) + random.normal(0, 0.06, n_steps)
    rows: list[dict[str, Any]] = [
        {
            "kind": "step",
            "step": int(s),
            "loss": float(v),
            "lr": 1e-3 * (1 - s / (10.0 * n_steps + 1)),
        }
        for s, v in zip(at, loss, strict=True)
    ]
    for epoch in range(1, 6):
        figures = {"training_loss": 2.3 + 0.6 / epoch, "validation_loss": 2.2 + 0.4 / epoch}
        rows.append({"kind": "epoch", "epoch": epoch, "step": 2 * n_steps * epoch, **figures})
    return rows


def per_report(n: int = 1000) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return {
        name: {m: random.beta(a, b, n) for m in ("rouge1", "rougeL")}
        for name, a, b in (("base", 1.6, 7.0), ("lora", 1.8, 4.2))
    }


def lengths(n: int = 1000) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    sizes = {"source": (4.6, 0.6), "reference": (3.1, 0.7), "base": (3.5, 0.4), "lora": (2.9, 0.5)}
    return {name: random.lognormal(*size, n).round() for name, size in sizes.items()}


def cases(*, with_text: bool) -> list[Case]:
    texts = {"source": SOURCE, "reference": REFERENCE, "base": BASE, "lora": LORA}
    start = LORA.index("5 mm")
    marks = {"lora": [(start, start + 4, "measurement"), (start + 5, start + 9, "laterality")]}
    found = []
    for position, kind in enumerate(("worst", "worst", "median", "best")):
        found.append(
            Case(
                id=f"report-{1041 + 37 * position}",
                group=list(GROUPS)[position],
                kind=kind,
                rougeL={"base": 11.0 + 9 * position, "lora": 4.5 + 22 * position},
                texts=texts if with_text else None,
                marks=marks if with_text else {},
            )
        )
    return found


def inputs(*, with_text: bool = False, n: int = 1000) -> dict[str, Any]:
    """The keyword arguments of `evaluation_page` beside the figures."""
    return {
        "published": PUBLISHED,
        "curves": curves(),
        "per_report": per_report(n),
        "lengths": lengths(n),
        "settings": {"adapter": "runs/demo/adapter", "n": "1000", "seed": "0", "cpu": "True"},
        "cases": cases(with_text=with_text),
    }
