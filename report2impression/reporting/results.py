"""What an evaluation leaves behind: scores.json, per_report.jsonl, sample_ids.json, timing.json,
report.html, and the tables on the terminal.

Figures, ids and settings only. Report text is shown by `show_examples` and by cases made with
`texts`, both on request alone.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from report2impression.program.errors import ConfigError
from report2impression.program.files import discard, discard_unfinished, write_file
from report2impression.program.privacy import for_terminal
from report2impression.program.terminal import print_table
from report2impression.reading.pairs import Pair
from report2impression.reporting import published
from report2impression.reporting.evaluation_page import Case, evaluation_page
from report2impression.reporting.pages import write_page
from report2impression.scoring.comparison import Evaluation
from report2impression.scoring.describe import words
from report2impression.scoring.faithfulness import checks as faithfulness
from report2impression.scoring.records import FILE, write_per_report
from report2impression.scoring.rouge_bleu import METRICS

LABELS = {"base": "base", "lora": "LoRA"}
SHOWN_METRICS = (*METRICS, "rougeLsum_split")
CASES_OF_A_KIND = 5
PREDICTIONS = "predictions.jsonl"
FILES = (PREDICTIONS, "report.html", "scores.json", "sample_ids.json", "timing.json", FILE)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A failure to write there becomes one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"cannot write into {folder}: {reason} (--output_dir)") from None


def open_results(folder: Path) -> None:
    """Make the folder and try it, before hours of decoding; what a killed evaluation left of its
    files, report text maybe, goes. Raises ConfigError if it cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        discard_unfinished(*(folder / name for name in FILES))
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_json(file: Path, content: Any) -> None:
    """All or nothing. Raises ConfigError if it cannot be written."""
    with writing(file.parent):
        write_file(file, json.dumps(content, indent=1).encode() + b"\n")


def write_results(
    folder: Path, evaluation: Evaluation, ids: Sequence[str], timing: Mapping[str, float]
) -> None:
    """Everything but the page. scores.json last: where it lies, the rest is complete. What takes
    its own time every time (timing.json) is no part of it."""
    write_json(folder / "sample_ids.json", list(ids))
    write_json(folder / "timing.json", {name: round(s, 3) for name, s in timing.items()})
    signature = evaluation.figures["signature"]
    write_per_report(folder / FILE, ids, evaluation.statistics, signature)
    write_json(folder / "scores.json", evaluation.figures)


def write_predictions(
    folder: Path, pairs: Sequence[Pair], texts: Mapping[str, Sequence[str]]
) -> None:
    """predictions.jsonl: report text, so only on request and for its owner's eyes alone."""
    rows = []
    for i, pair in enumerate(pairs):
        row = {"id": pair.id, "source": pair.prompt, "reference": pair.impression}
        rows.append(json.dumps(row | {name: texts[name][i] for name in LABELS}) + "\n")
    with writing(folder):
        write_file(folder / PREDICTIONS, "".join(rows).encode())


def remove_predictions(folder: Path) -> None:
    """Those of an evaluation before this one: they are not of these scores, and no text stays that
    was not asked for."""
    with writing(folder):
        discard(folder / PREDICTIONS)


def write_report(
    folder: Path,
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    outputs: Mapping[str, Sequence[str]],
    *,
    run: Path,
    settings: Mapping[str, str],
    show_text: bool,
    beside_published: bool = False,
    ask: Callable[..., Any] = partial,
) -> None:
    """report.html. `run` is the training's folder, whose metrics.jsonl gives the curves; `ask` may
    draw elsewhere, where matplotlib is loaded already."""
    texts = {
        "source": [pair.prompt for pair in pairs],
        "reference": [pair.impression for pair in pairs],
        **{name: outputs[name] for name in LABELS},
    }
    lengths = {name: np.array([len(words(t)) for t in column]) for name, column in texts.items()}
    page = partial(
        evaluation_page,
        evaluation.figures,
        published=published.SCORES if beside_published else {},
        curves=_curves(run / "metrics.jsonl"),
        per_report=evaluation.per_report,
        lengths=lengths,
        settings=settings,
        cases=_cases(evaluation, pairs, texts, show_text=show_text),
    )
    write_page(folder / "report.html", ask(page)())


def _curves(file: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; none where the adapter lies without its run."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        return []


def _cases(
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    texts: Mapping[str, Sequence[str]],
    *,
    show_text: bool,
) -> list[Case]:
    """Worst, median and best reports by the adapter's ROUGE-L; ties fall by position."""
    found = {name: evaluation.per_report[name]["rougeL"] for name in LABELS}
    order = np.argsort(found["lora"], kind="stable")
    n, size = len(order), min(CASES_OF_A_KIND, len(order) // 3)
    middle = (n - size) // 2
    parts = {"worst": order[:size], "median": order[middle : middle + size]}
    parts["best"] = order[n - size :][::-1]
    cases = []
    for kind, indices in parts.items():
        for i in indices.tolist():
            shown = {name: column[i] for name, column in texts.items()}
            marked = LABELS if show_text else ()
            cases.append(
                Case(
                    id=pairs[i].id,
                    group=pairs[i].group,
                    kind=kind,
                    rougeL={name: 100 * float(f1[i]) for name, f1 in found.items()},
                    texts=shown if show_text else None,
                    marks={name: _marks(shown["source"], shown[name]) for name in marked},
                )
            )
    return cases


def _marks(source: str, output: str) -> list[tuple[int, int, str]]:
    """What the checks found unsupported in an output."""
    found = faithfulness.findings(source, output)
    return [(span.start, span.end, check) for check, spans in found.items() for span in spans]


# --- the terminal ---------------------------------------------------------------------------------


def print_scores(figures: dict[str, Any], *, beside_published: bool = False) -> None:
    """Ours with intervals, the baselines and, if asked for, the published figures, in percent; then
    the test of the difference, faithfulness, and the guard rails."""
    systems = {LABELS[name]: name for name in LABELS}
    systems |= {name.replace("_", " "): name for name in figures["baselines"]}
    rows: list[tuple[Any, ...]] = []
    for label, name in systems.items():
        row = figures.get(name) or figures["baselines"].get(name)
        rows.append((label, *(row and row[m] for m in SHOWN_METRICS)))
        if row:
            bounds = figures["intervals"][name]
            rows.append(("", *(f"{bounds[m][0]:.1f}-{bounds[m][1]:.1f}" for m in SHOWN_METRICS)))
    rows += [
        (f"published: {LABELS[name]} (MIMIC-III)", *(row.get(m) for m in SHOWN_METRICS))
        for name, row in published.SCORES.items()
        if beside_published
    ]
    how = figures["signature"]
    words = f", words: {how['rouge_tokens']}" if "rouge_tokens" in how else ""
    title = (
        f"{figures['n']:,} test reports, percent with 95 % intervals "
        f"(ROUGE F, stemmer: {how['stemmer']}{words}; rougeLsum as published = L on one line)"
    )
    print_table(title, ("", *SHOWN_METRICS), rows, digits=1)
    print_paired(figures["paired"], "LoRA - base")
    _print_faithfulness(figures["faithfulness"])
    _print_structured(figures["structured"])
    for rail in figures["guard_rails"]:
        print(f"note: {rail['message']}")


def print_paired(tests: dict[str, Any], title: str) -> None:
    """Differences on the same reports, with their tests."""
    columns = ("metric", "difference", "95 % interval", "p", "p (Holm)", "wins / ties / losses")
    rows = [
        (
            metric,
            f"{test['difference']:+.2f}",
            f"{test['interval'][0]:+.2f} to {test['interval'][1]:+.2f}",
            f"{test['p']:.4f}",
            f"{test['p_holm']:.4f}",
            f"{test['wins']:,} / {test['ties']:,} / {test['losses']:,}",
            test["n_for_1_point"],
        )
        for metric, test in tests["metrics"].items()
    ]
    print_table(f"{title}, paired", (*columns, "reports for 1 point"), rows)


def _print_faithfulness(checks: dict[str, Any]) -> None:
    def cell(found: dict[str, Any]) -> str:
        low, high = found["interval"]
        return f"{found['per_100']:.1f} ({low:.1f}-{high:.1f})"

    systems = (*LABELS, "reference")
    rows = [(check, *(cell(rates[name]) for name in systems)) for check, rates in checks.items()]
    columns = ("check", *(LABELS.get(name, "radiologist") for name in systems))
    print_table("Impressions with something their report does not support, per 100", columns, rows)


def _print_structured(found: dict[str, Any]) -> None:
    rows = [
        (field, *(x[n]["f1"] for n in LABELS), test["difference"], f"{test['p_holm']:.4f}")
        for field, x in found.items()
        for test in (x["paired"],)
    ]
    columns = ("structured F1", *LABELS.values(), "difference", "p (Holm)")
    title = "What is said of findings, against the radiologist, percent"
    print_table(title, columns, rows, digits=1)


def print_run_comparison(figures: dict[str, Any]) -> None:
    """Two runs on the reports that they share."""
    alone = figures["only_a"] + figures["only_b"]
    left_out = f"; {alone:,} are in one run only and left out" if alone else ""
    rows = [(run, *(figures[run][m] for m in SHOWN_METRICS)) for run in ("a", "b")]
    title = f"{figures['n']:,} common test reports, percent{left_out}"
    print_table(title, ("run", *SHOWN_METRICS), rows, digits=1)
    print_paired(figures["paired"], "a - b")


def show_examples(pairs: Sequence[Pair], outputs: Mapping[str, Sequence[str]], n: int) -> None:
    """Side by side on the terminal, on request only."""
    console = Console()
    console.print(
        f"{n} examples follow. They show REPORT TEXT: mind where this output goes.", style="bold"
    )
    for pair, base, lora in list(zip(pairs, outputs["base"], outputs["lora"], strict=True))[:n]:
        parts = (
            ("report", pair.prompt),
            ("reference", pair.impression),
            ("base", base),
            ("LoRA", lora),
        )
        body = Text("\n").join(
            Text.assemble((f"{name:<10}", "bold"), "\n".join(map(for_terminal, text.splitlines())))
            for name, text in parts
        )
        console.print(Panel(body, title=Text(for_terminal(pair.id)), title_align="left"))
