"""report2impression: fine-tune T5 with LoRA on radiology reports, and use what was trained.

Floors, each importing lower ones only (docs/architecture.md):
serving | training, extracting | runs | decoding, audit | batching, weights, reporting, corpora |
reading, scoring | engine, program

Importing it sends nothing and loads nothing heavy: the libraries' telemetry is off before any of
them is there to be imported.
"""

import logging
import os
from typing import Any

# Libraries that count their users do so unless told; some read this when they are imported.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets`: a HEAD to a counter on every load
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
os.environ.update(TELEMETRY_OFF)

# oneDNN keeps so many prepared products (1,024 by default, fewer than an epoch has shapes). It
# reads this once, at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")

# PEFT imports bitsandbytes, which warns at once of an optional kernel that it did not download.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """`from report2impression import Extractor` loads torch; importing the package does not."""
    if name == "Extractor":
        from report2impression.extracting.extractor import Extractor

        return Extractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
