"""Tensors out of pickles, in a process that may do nothing else: the only place that opens one.

    python -I unpickle.py OUT MIB SECONDS FILE ...

`weights_only` builds tensors from a closed list of names and refuses all others before they are
called. What is left to a crafted file, memory and time, is limited. The end of this process is all
that its parent learns (weights/convert.py); it prints nothing of what it read.
"""

import resource
import sys
from pathlib import Path


def limit(mib: int, seconds: int) -> None:
    """Memory above what the libraries take, processor time, size of files, no core dump."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + mib * 2**20,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: mib * 2**20,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in most.items():
        resource.setrlimit(kind, (value, value))


def main(out: str, mib: str, seconds: str, *files: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    limit(int(mib), int(seconds))
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        found = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not weights.keys().isdisjoint(found):
            sys.exit(1)
        weights |= found
    # Tied weights share their memory in a pickle, and may not in the other format.
    save_file({name: weight.detach().clone().contiguous() for name, weight in weights.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
