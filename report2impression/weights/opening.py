"""Open a folder or a hub id of somebody else: where it is, and foreign errors in one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2  # of huggingface_hub: its connection errors have no other base
import huggingface_hub
import huggingface_hub.constants
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError

from report2impression.program.errors import ConfigError
from report2impression.reading.hub import HUB_TIMEOUT_S
from report2impression.weights.base_files import check_base

# What the libraries raise for files that are missing, broken, or of another model, and for hubs
# that cannot be reached. Around their calls only: in a line of ours each of these is a bug.
LOADING_ERRORS = (
    OSError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
)


def look_at(what: str, path: str) -> bool:
    """Whether it is a folder, whose files were checked: then no hub is asked for anything.

    Else one request without retries: `from_pretrained` would retry for minutes where no hub is.
    """
    if os.path.isdir(path):
        check_base(Path(path))
        return True
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        # An answer of the hub, whatever it is, is judged by `from_pretrained`.
        with one_line_errors(what, path), suppress(HfHubHTTPError):
            huggingface_hub.HfApi().model_info(path, timeout=HUB_TIMEOUT_S)
    return False


@contextmanager
def one_line_errors(what: str, path: str) -> Iterator[None]:
    """A foreign loading error becomes one line; its own text may name hosts, so it stays out."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except LOADING_ERRORS as error:
        raise cannot_load(what, path, type(error).__name__) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def cannot_load(what: str, path: str, why: str) -> ConfigError:
    where = "folder" if os.path.isdir(path) else "hub id"
    return ConfigError(
        f"cannot load the {what} from {where} {path} ({why}): check the name (a relative one "
        "starts from the current folder), the revision, the network, and that its weights are "
        "safetensors (of a pytorch_model.bin alone: report2impression convert); offline, give "
        "local copies with --model.path DIR and --data.path DIR, set HF_HUB_OFFLINE=1 to use an "
        "earlier download, or run `make demo`"
    )
