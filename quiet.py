"""Keep third-party libraries quiet and at home: no telemetry, no progress bars of theirs, no
known noise."""

import logging
import os
import warnings

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

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a HEAD to a counter on every load
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
