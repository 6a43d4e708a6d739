"""Programs that a benchmark starts, and what they take."""

import contextlib
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report2impression.program.errors import ConfigError

SAMPLE_S = 0.05


def last_line(command: Sequence[str], what: str, **how: Any) -> str:
    """What the program prints last. ConfigError, with the last line of its errors, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **how)
    if done.returncode:
        raise ConfigError(f"{what} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.splitlines()[-1]


def watched(command: Sequence[str], *kinds: str) -> dict[str, float]:
    """Wall and CPU seconds of a program, and for each kind (`Pss`, `Rss`) the largest sum over all
    its processes, in MiB. ConfigError if it fails."""
    start, cpu, peaks = time.perf_counter(), _children_cpu_s(), dict.fromkeys(kinds, 0.0)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            pids = _below(process.pid)
            peaks = {kind: max(peak, _memory_mib(pids, kind)) for kind, peak in peaks.items()}
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
        assert process.stderr
        told = process.stderr.read().decode(errors="replace")
    if process.returncode:
        raise ConfigError(f"{' '.join(command[1:4])} failed: {told.strip().splitlines()[-1]}")
    seconds = {"seconds": time.perf_counter() - start, "cpu_s": _children_cpu_s() - cpu}
    return seconds | {f"peak_{kind.lower()}_mib": peak for kind, peak in peaks.items()}


def _below(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    with contextlib.suppress(OSError):  # it may end while we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _below(int(child))
    return found


def _memory_mib(pids: list[int], kind: str) -> float:
    """Sum over the processes."""
    total_kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total_kib += int(line.split()[1]) if line.startswith(f"{kind}:") else 0
    return total_kib / 1024


def _children_cpu_s() -> float:
    """CPU seconds of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
