"""Where does a training step's time go?

    python -m bench.profile --data.path DIR --model.path BASE --trace trace.json

`torch.profiler` over some steps of ours: the operations that take most, and the share of each part
of a step. The trace opens in Perfetto. The last line is JSON.
"""

from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.common import load_data, print_json, start
from bench.train_speed import OurSide, SpeedConfig, our_batches, ours
from report2impression.program.terminal import print_table

# The first part whose word stands in an operation's name owns it.
PARTS = {
    "matrix products": ("mm", "linear", "mkldnn", "gemm"),
    "softmax": ("softmax",),
    "dropout masks": ("random_", "bernoulli", "::ge"),
    "gathers for attention": ("index", "gather", "scatter"),
    "optimizer and clipping": ("adam", "foreach", "_norm", "clip"),
    "copies and casts": ("copy", "cat", "clone", "zero", "fill"),
    "element by element": ("",),
}


@dataclass(frozen=True)
class ProfileConfig(SpeedConfig):
    """A profile of our training step."""

    trace: str = ""
    """File for the trace, to be opened in Perfetto; empty = none."""
    top: int = 15
    """Operations to list."""


def part_of(name: str) -> str:
    """The part of a step that an operation belongs to."""
    return next(part for part, words in PARTS.items() if any(word in name for word in words))


def main() -> None:
    config = start(ProfileConfig, (__doc__ or "").partition("\n")[0])
    dataset = load_data(config)
    run = ours(config, dataset, our_batches(dataset, config), OurSide(precision=config.precision))
    run(2)
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recorded:
        seconds = run(config.steps)
    if config.trace:
        recorded.export_chrome_trace(config.trace)
    events = recorded.key_averages()

    def own(event: object) -> float:
        return getattr(event, "self_device_time_total" if cuda else "self_cpu_time_total") / 1e3

    events = sorted(events, key=own, reverse=True)
    total = sum(own(event) for event in events)
    rows = [
        (
            event.key,
            event.count // config.steps,
            f"{own(event) / config.steps:.1f}",
            f"{own(event) / total:.1%}",
        )
        for event in events[: config.top]
    ]
    print_table("Operations", ("", "per step", "ms per step", "share"), rows)
    parts = dict.fromkeys(PARTS, 0.0)
    for event in events:
        parts[part_of(event.key)] += own(event) / total
    print_table("Parts of a step", ("", "share"), [(k, f"{v:.1%}") for k, v in parts.items()])
    samples = config.steps * config.micro_batch_size
    print_json({"samples_per_s": samples / seconds, "parts": parts})


if __name__ == "__main__":
    main()
