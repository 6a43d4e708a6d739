"""Keep third-party libraries quiet and at home: no telemetry, no progress bars of theirs, no
known noise."""

import logging
import os
import warnings

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

# PEFT imports bitsandbytes, which warns at once of an optional kernel that it did not download: so
# this module is imported before PEFT.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quieten_libraries() -> None:
    """Call first thing in an entry point."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings(
        "ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning
    )

    import datasets
    import huggingface_hub.constants
    import transformers

    # They may have been imported before this module.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
