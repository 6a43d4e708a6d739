"""The rows of a data set on the hub, asked once and without noise.

Messages name only the class of a foreign exception, as its text may quote a cell or a host.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from report2impression.program.errors import DataError
from report2impression.reading.arrow import ARROW_BATCH, CLASSES, arrow_rows
from report2impression.reading.rows import PlacedRow, Table, Wanted

HUB_TIMEOUT_S = 10.0


def open_hub(path: str, split: str, revision: str | None) -> Any:
    """One split as a `datasets.Dataset` (memory-mapped). DataError: the hub or the split cannot be
    had."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with _quiet_hub():
            if not datasets.config.HF_HUB_OFFLINE:
                # One request without retries: `load_dataset` would try for 23 s and has no setting
                # for it. An answer with an error code counts as reached; `load_dataset` judges it.
                with contextlib.suppress(HfHubHTTPError):
                    api = huggingface_hub.HfApi()
                    api.dataset_info(path, revision=revision, timeout=HUB_TIMEOUT_S)
            return datasets.load_dataset(path, revision=revision, split=split)
    except Exception as error:  # three foreign libraries raise here, without a common base
        raise DataError(
            f"split {split} of {path}, which is no local folder, cannot be loaded from the hub "
            f"({type(error).__name__}); `make demo` runs offline; `--data.path DIR` (and "
            "`--model.path DIR`) use local copies, HF_HUB_OFFLINE=1 an earlier download"
        ) from None


def open_hub_table(path: str, split: str, revision: str | None) -> Table:
    """One split as a table."""
    dataset = open_hub(path, split, revision)
    columns = tuple(dataset.column_names)
    name = f"{path} {split}"
    features = dict(dataset.features or {})
    classes = {n: f.names for n, f in features.items() if type(f).__name__ == CLASSES}

    def rows(wanted: Wanted) -> Iterator[PlacedRow]:
        names = [column for column in columns if wanted is None or column in wanted]
        # Arrow format: images and other columns that we do not need stay undecoded.
        batches = dataset.select_columns(names).with_format("arrow").iter(batch_size=ARROW_BATCH)
        for number, row in enumerate(arrow_rows(batches, classes), start=1):
            yield f"{name} row", number, row

    return Table(name, "hub", columns, rows)


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """No retry warnings and progress bars of the hub libraries, during this call only."""
    import datasets.utils
    import huggingface_hub.utils

    libraries: tuple[Any, ...] = (datasets.utils, huggingface_hub.utils)
    levels = [library.logging.get_verbosity() for library in libraries]
    bars = [not library.are_progress_bars_disabled() for library in libraries]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for library in libraries:
                library.logging.set_verbosity(library.logging.CRITICAL)
                library.disable_progress_bars()
            yield
        finally:
            for library, level, bar in zip(libraries, levels, bars, strict=True):
                library.logging.set_verbosity(level)
                if bar:
                    library.enable_progress_bars()
