"""The objectives of domain pre-training: T5's span corruption, and prefix language modelling.

Span corruption (Raffel et al. 2020, section 3.1.4): a report `a b c d e f g h` becomes
`a b <X> e f <Y> h </s>` -> `<X> c d <Y> g <Z> </s>`: spans of mean length 3 that cover 15 % of the
tokens are each replaced by a sentinel, and the target spells them out. How many tokens and spans go
depends on the length alone; where they lie is a pure function of the generator that the caller
seeds with (seed, epoch, example).

Prefix language modelling (section 3.2 there; the S-denoiser of UL2, Tay et al. 2022): the report is
cut in two, `a b c d e </s>` -> `f g h </s>`. The end of a report is its impression, so a base that
has learned to go on from any place has begun to learn the task. A share may be cut right where the
impression begins: all of such a target can be read off its source, which is what teaches copying.

All cuts are known before anything is drawn, and so are the lengths, which is what the plan needs.
"""

import numpy as np
from numpy.typing import NDArray

IdArray = NDArray[np.int32]

NOISE_DENSITY = 0.15
MEAN_SPAN = 3.0
MIN_TOKENS = 2  # one token to hide and one to keep


def span_counts(n_tokens: int, max_spans: int) -> tuple[int, int]:
    """(noise tokens, noise spans) of a report of n_tokens >= MIN_TOKENS; at most max_spans
    sentinels."""
    noise = min(max(round(n_tokens * NOISE_DENSITY), 1), n_tokens - 1)
    spans = max(round(noise / MEAN_SPAN), 1)
    return noise, min(spans, noise, n_tokens - noise, max_spans)


def corrupted_lengths(n_tokens: int, max_spans: int) -> tuple[int, int]:
    """(source, target) tokens after corruption, each with its end-of-sequence token."""
    noise, spans = span_counts(n_tokens, max_spans)
    return n_tokens - noise + spans + 1, noise + spans + 2


def corrupt(
    ids: IdArray, sentinels: IdArray, eos_id: int, draw: np.random.Generator
) -> tuple[IdArray, IdArray]:
    """Corrupt one report: ids (S,) without end-of-sequence, sentinels in order of use -> (source,
    target).

    The target ends with one sentinel more than there are spans, then end-of-sequence, as in T5.
    """
    noise, spans = span_counts(len(ids), len(sentinels) - 1)
    # Kept and hidden parts alternate, kept first (so the first token stays) and last, where the
    # part may be empty: one token more is dealt out, and taken back from the last part.
    kept = _random_parts(len(ids) - noise + 1, spans + 1, draw)[:-1]
    hidden = _random_parts(noise, spans, draw)
    edges = np.concatenate([[0], np.cumsum(np.stack([kept, hidden], axis=1).ravel())])
    source: list[IdArray] = []
    target: list[IdArray] = []
    for span in range(spans):
        start, split, end = edges[2 * span : 2 * span + 3]
        source += [ids[start:split], sentinels[span : span + 1]]
        target += [sentinels[span : span + 1], ids[split:end]]
    source.append(ids[edges[-1] :])
    eos = np.array([eos_id], dtype=np.int32)
    target += [sentinels[spans : spans + 1], eos]
    return np.concatenate([*source, eos]), np.concatenate(target)


def cuts(
    lengths: NDArray[np.int64],
    impressions: NDArray[np.int64],
    share: float,
    share_at_impression: float,
    draw: np.random.Generator,
) -> NDArray[np.int64]:
    """Where each report (N,) is cut in two; 0 = span corruption instead, for all but `share` of
    them.

    `share_at_impression` of the cuts lie where the impression begins, if it does before the report
    ends; the others in the report's last half, but not before MIN_TOKENS - 1.
    """
    first = np.maximum(lengths // 2, MIN_TOKENS - 1)
    places = first + (draw.random(len(lengths)) * (lengths - first)).astype(np.int64)
    cut = draw.random(len(lengths)) < share
    asked = (draw.random(len(lengths)) < share_at_impression) & (impressions < lengths)
    return np.where(cut, np.where(asked, impressions, places), 0)


def split_at(ids: IdArray, cut: int, eos_id: int) -> tuple[IdArray, IdArray]:
    """A report (S,) without end-of-sequence -> what stands before the cut, and what follows."""
    eos = np.array([eos_id], dtype=np.int32)
    return np.concatenate([ids[:cut], eos]), np.concatenate([ids[cut:], eos])


def _random_parts(total: int, parts: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Cut `total` into `parts` positive lengths, every composition equally likely."""
    cuts = np.sort(draw.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
