"""Two runs that were evaluated before, paired on their common reports.

report2impression compare RUN_A RUN_B
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.reporting.results import print_run_comparison, write_json
from report2impression.scoring.comparison import compare_runs
from report2impression.scoring.records import read_per_report


@dataclass(frozen=True)
class CompareConfig:
    """Two runs, evaluated before on the same test reports."""

    run_a: str
    """Run folder (or its evaluation folder, or a per_report.jsonl)."""
    run_b: str
    """The run that a is compared with."""
    system: str = "lora"
    """What is compared: lora, base, or a baseline."""
    n_resamples: int = 10_000
    """Bootstrap resamples and random swaps behind intervals and p values."""
    seed: int = 0
    """Seed of both."""
    output: str | None = None
    """Also write the figures to this JSON file."""


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    flags = sys.argv[1:] if argv is None else argv
    if "--help" not in flags and "-h" not in flags:
        if len(flags) < 2 or any(run.startswith("-") for run in flags[:2]):
            raise ConfigError(
                "two evaluated runs are needed: report2impression compare RUN_A RUN_B"
            )
        flags = [f"--run_a={flags[0]}", f"--run_b={flags[1]}", *flags[2:]]
    config = parse(CompareConfig, flags, description="Two evaluated runs, paired")
    a, b = (_records(Path(run).expanduser()) for run in (config.run_a, config.run_b))
    figures = compare_runs(
        read_per_report(a),
        read_per_report(b),
        system=config.system,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
    print(f"a = {config.run_a}, b = {config.run_b}, system {config.system}")
    print_run_comparison(figures)
    if config.output:
        write_json(Path(config.output), figures)


def _records(run: Path) -> Path:
    return run / "evaluation" if (run / "evaluation").is_dir() else run


if __name__ == "__main__":
    main()
