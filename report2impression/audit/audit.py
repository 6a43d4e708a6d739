"""What is wrong with report pairs, before a model is trained on them.

    report2impression audit --data.path data/mimic --tokenizer assets/tiny_base --fail_on error
    report2impression audit --data.path data/mimic --clean data/mimic-clean

One table on the console, audit.json and audit.html in the output folder: counts, lengths, copies
and near copies within and across splits, shared patients, placeholders, boilerplate, what the
tokenizer would cut, and what a constant answer already scores. Each finding has its severity and
its remedy. Nothing that is printed or written holds report text, but the cleaned data.

With --fail_on the exit status is 9 (`FindingsError.exit_code`) where there is such a finding.
"""

import json
import multiprocessing
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from report2impression.audit.checks import Flags, Texts, prepare, run_checks
from report2impression.audit.cleaning import DEFAULT, names_to_remove, reasons, write_clean
from report2impression.audit.findings import CHECKS, ROWS, SEVERITIES, Told, bad_rows, judge
from report2impression.audit.page import SYSTEMS, audit_page, check_rows
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, UserError, exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.reading.licence import mark_of
from report2impression.reading.options import PairSource
from report2impression.reading.pairs import SPLITS, Pair, Split, has_split, open_pairs
from report2impression.reporting.pages import write_page
from report2impression.scoring import baselines, placeholders
from report2impression.scoring.rouge_bleu import scores

N_SCORED, N_NEIGHBOURS = 1000, 10_000  # pairs: more cost minutes and change the scores little
UNCUT = 2**31 - 1  # tokens
SHOWN = ("rouge1", "rouge2", "rougeL", "bleu")

Words = dict[str, dict[str, np.ndarray]]  # side -> split -> words of each text


class FindingsError(UserError):
    """The audit found what --fail_on names."""

    exit_code = 9


@dataclass(frozen=True)
class AuditSource(PairSource):
    """The pairs to look at."""

    prefix: str = "extract: "
    """Text put before every report in training; counts among its tokens."""


@dataclass(frozen=True)
class AuditConfig:
    """An audit of report pairs, and their cleaning."""

    data: AuditSource = field(default_factory=AuditSource)
    output_dir: str = "runs/audit"
    """Folder for audit.json and audit.html."""
    tokenizer: str = ""
    """Folder or hub id of the T5 base, to count tokens; without it nothing is said about them."""
    max_source_tokens: int = 512
    """Longest input in tokens, prefix and end of sequence included."""
    max_target_tokens: int = 256
    """Longest target in tokens, end of sequence included."""
    fail_on: Literal["never", "error", "warning"] = "never"
    """Exit with status 9 where there is a finding of this severity or a graver one."""
    clean: str = ""
    """Folder to write the cleaned data to, with removed.csv; must not exist, or be empty."""
    remove: str = DEFAULT
    """With --clean: the checks whose pairs go; bad rows always do."""


def read_splits(source: AuditSource) -> list[Split]:
    """The splits that are there (of a hub set: all three), bad rows left out and listed."""
    path, names = source.path or "", list(SPLITS)
    if os.path.isdir(os.path.expanduser(path)):
        names = [name for name in SPLITS if has_split(path, name)] or names[:1]
    return [open_pairs(source, name, on_bad_row="skip").read() for name in names]


def simple_scores(train: Sequence[Pair], tested: Sequence[Pair], split: str) -> dict[str, Any]:
    """What answers without a model score, in percent, on a sample with its sizes."""
    rng = random.Random(0)
    sample = rng.sample(list(tested), min(N_SCORED, len(tested)))
    known = rng.sample(list(train), min(N_NEIGHBOURS, len(train)))
    inputs = [pair.prompt for pair in sample]
    outputs = {
        "most_frequent": baselines.most_frequent([p.impression for p in train], len(sample)),
        "nearest_neighbour": baselines.nearest_neighbour(
            inputs, [(pair.prompt, pair.impression) for pair in known]
        ),
        "copy": inputs,
    }
    wanted = [pair.impression for pair in sample]
    systems = {name: scores(outputs[name], wanted) for name in SYSTEMS}
    return {
        "split": split,
        "scored": len(sample),
        "of": len(tested),
        "neighbours": len(known),
        "train": len(train),
        "systems": {name: {key: found[key] for key in SHOWN} for name, found in systems.items()},
    }


def _score_job(splits: Sequence[Split]) -> dict[str, Any]:
    by_name = {split.name: split.pairs for split in splits}
    tested = next((name for name in ("test", "validation") if name in by_name), "")
    if "train" not in by_name or not tested:
        return {}
    return simple_scores(by_name["train"], by_name[tested], tested)


def count_tokens(
    config: AuditConfig, splits: Sequence[Split]
) -> tuple[Flags, dict[str, Any], list[tuple[str, int]]]:
    """Flags of what is cut or unknown, lengths in tokens, and unknown characters, as training would
    count them; nothing of all that without a tokenizer."""
    if not config.tokenizer:
        return {}, {}, []
    # Loads transformers, which most audits do without.
    from report2impression.batching.signs import Signs
    from report2impression.batching.tokens import tokenise
    from report2impression.weights.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer)
    signs = Signs(tokenizer)
    flags: Flags = {"cut_input": {}, "cut_target": {}, "unknown": {}}
    lengths: dict[str, Any] = {"input": {}, "target": {}}
    unknown: Counter[str] = Counter()
    for split in splits:
        prompts = [config.data.prefix + pair.prompt for pair in split.pairs]
        impressions = [pair.impression for pair in split.pairs]
        flags["unknown"][split.name] = np.zeros(len(split.pairs), bool)
        for side, texts, limit in (
            ("input", prompts, config.max_source_tokens),
            ("target", impressions, config.max_target_tokens),
        ):
            tokens = tokenise(texts, tokenizer, max_tokens=UNCUT)
            flags[f"cut_{side}"][split.name] = tokens.lengths > limit
            lengths[side][split.name] = _spread(tokens.lengths)
            is_unknown = tokens.ids == tokenizer.unk_token_id
            flags["unknown"][split.name] |= np.logical_or.reduceat(is_unknown, tokens.offsets[:-1])
            unknown.update(signs.unknown(texts) if is_unknown.any() else ())
    return flags, lengths, unknown.most_common()


def _spread(lengths: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.quantile(lengths, 0.95)),
        "longest": int(lengths.max()),
    }


def audit(config: AuditConfig) -> dict[str, Any]:
    """Look at the data, write the page and, on request, the cleaned data; returns the figures.

    Raises ConfigError or DataError.
    """
    removed_names = names_to_remove(config.remove)
    splits = read_splits(config.data)
    mark = mark_of(config.data.path or "")
    # Forked before any library starts a thread; the other core scores while this one compares.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        scored = pool.submit(_score_job, splits)
        texts = prepare(splits)
        flags = run_checks(texts)
        cut, token_lengths, unknown = count_tokens(config, splits)
        found = judge(flags | cut, bad_rows(splits))
        figures = _figures(config, texts, flags | cut, found, scored.result())
    words = _words(texts)
    figures["unknown_characters"] = unknown
    figures["lengths"] = {"words": _word_lengths(texts, words)}
    if token_lengths:
        figures["lengths"]["tokens"] = token_lengths
    if config.clean:
        why = reasons(texts, flags, removed_names)
        removed = write_clean(Path(config.clean).expanduser().resolve(), splits, why, mark)
        figures["removed"] = [[*key, n] for key, n in sorted(removed.items())]
    _write(Path(config.output_dir).expanduser(), figures, words)
    return figures


def _figures(
    config: AuditConfig,
    texts: Sequence[Texts],
    flags: Flags,
    found: Sequence[Told],
    scored: dict[str, Any],
) -> dict[str, Any]:
    severities = {told.check: told.severity for told in found}
    counts: dict[str, Mapping[str, int]] = {**bad_rows([x.split for x in texts])}
    counts |= {name: {s: int(w.sum()) for s, w in own.items()} for name, own in flags.items()}
    n_rows = {x.split.name: x.split.n_rows for x in texts}
    checks = {
        check.name: {
            "label": check.label,
            "severity": severities.get(check.name, ""),
            "pairs": counts[check.name],
            "percent": {s: 100 * n / n_rows[s] for s, n in counts[check.name].items()},
        }
        for check in (*ROWS, *CHECKS)
        if check.name in counts
    }
    if not any(pair.patient for x in texts for pair in x.pairs):
        del checks["shared_patient"]  # not known, which is not the same as 0
    groups = {x.split.name: Counter(p.group for p in x.pairs if p.group) for x in texts}
    names = sorted({name for own in groups.values() for name in own})
    return {
        "splits": {x.split.name: _split_figures(x) for x in texts},
        "findings": [told._asdict() for told in found],
        "checks": checks,
        "groups": {name: {s: own[name] for s, own in groups.items()} for name in names},
        "scores": scored,
        "settings": {f"data.{k}": v for k, v in asdict(config.data).items()}
        | {k: v for k, v in asdict(config).items() if k not in ("data", "output_dir")},
    }


def _split_figures(x: Texts) -> dict[str, Any]:
    targets = Counter(x.targets)
    return {
        "rows": x.split.n_rows,
        "pairs": len(x.pairs),
        "different_targets": len(targets),
        "commonest_target_percent": 100 * max(targets.values()) / len(x.pairs),
        "patients": len({pair.patient for pair in x.pairs if pair.patient}),
    }


def _words(texts: Sequence[Texts]) -> Words:
    return {
        side: {
            x.split.name: np.array([len(text.split()) for text in getattr(x, f"{side}s")])
            for x in texts
        }
        for side in ("input", "target")
    }


def _word_lengths(texts: Sequence[Texts], words: Words) -> dict[str, Any]:
    """Spread of lengths, and the percentage of words that are placeholders."""
    found: dict[str, Any] = {"input": {}, "target": {}}
    for x in texts:
        for side, name in (("input", "prompt"), ("target", "impression")):
            counts = words[side][x.split.name]
            n = sum(placeholders.count(getattr(pair, name)) for pair in x.pairs)
            share = {"placeholders": 100 * n / max(int(counts.sum()), 1)}
            found[side][x.split.name] = _spread(counts) | share
    return found


def _write(folder: Path, figures: dict[str, Any], words: Words) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: {error.strerror}; give another") from None
    write_page(folder / "audit.json", json.dumps(figures, indent=1) + "\n")
    write_page(folder / "audit.html", audit_page(figures, words))


def show(figures: dict[str, Any], config: AuditConfig) -> None:
    """The table on stdout, the findings below it."""
    head, rows = check_rows(figures)
    shown = [["" if value is None else value for value in row] for row in rows]
    if scored := figures["scores"]:
        blanks = [""] * 2 * (list(figures["splits"]).index(scored["split"]))
        for name, found in scored["systems"].items():
            shown.append([f"ROUGE-L, {SYSTEMS[name]}", "", *blanks, f"{found['rougeL']:.1f}"])
    print_table(f"Audit of {config.data.path}", head, shown, digits=2, left=(0, 1))
    if not config.tokenizer:
        print("tokens not counted: give --tokenizer to see what would be cut or is unknown")
    if "shared_patient" not in figures["checks"]:
        print("patients not compared: the data have no column `patient`")
    for told in figures["findings"]:
        counts = ", ".join(f"{n:,} in {split}" for split, n in told["counts"].items() if n)
        print(f"{told['severity']}: {told['title']}: {counts}: {told['remedy']}")
    for split, reason, n in figures.get("removed", []):
        print(f"removed from {split}: {n:,} ({reason})")
    print(f"page: {Path(config.output_dir) / 'audit.html'}")


@exits_cleanly
def main() -> None:
    config = parse(AuditConfig, description=(__doc__ or "").partition("\n")[0])
    figures = audit(config)
    show(figures, config)
    if config.fail_on != "never":
        grave = SEVERITIES[: SEVERITIES.index(config.fail_on) + 1]
        n = sum(told["severity"] in grave for told in figures["findings"])
        if n:
            raise FindingsError(
                f"{n} findings at or above --fail_on {config.fail_on}; see the page"
            )


if __name__ == "__main__":
    main()
