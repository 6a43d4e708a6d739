"""Two systems that understand nothing; each table of scores carries both.

`most_frequent` answers every report with the commonest training impression. Reports are mostly
normal, so it scores high (ROUGE-1 48 on the Indiana test split): a model below it has learned
nothing that counting would not give. `copy` repeats the findings: it shows what plain overlap
with the input earns, and so how much a metric rewards selecting words over concluding.
"""

from collections import Counter
from collections.abc import Iterable


def copy(prompts: Iterable[str]) -> list[str]:
    """The findings themselves, unchanged."""
    return list(prompts)


def most_frequent(train_impressions: Iterable[str], n: int) -> list[str]:
    """The commonest training impression, `n` times; of equally common ones the first seen."""
    counts = Counter(train_impressions)
    if not counts:
        raise ValueError("no training impressions to choose the most frequent from")
    return [max(counts, key=counts.__getitem__)] * n  # dicts keep the order of first sight
