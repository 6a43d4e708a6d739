"""Ray Data on this machine, as docs/use.md has it: an Extractor in an actor, fed by map_batches."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report2impression import Extractor
from tests.slow.conftest import Adapter
from tests.tiny import ROOT, Tiny, rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of one machine, which tells nobody."""
    library = pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    library.init(
        num_cpus=2,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield library
    library.shutdown()


def test_map_batches_writes_what_the_extractor_does(
    ray: Any, adapter: Adapter, tiny: Tiny, tmp_path: Path
) -> None:
    rows = rows_of(tiny)
    found = ray.data.from_items(rows).map_batches(
        Extractor,
        fn_constructor_args=(str(adapter.folder),),
        fn_constructor_kwargs={"max_new_tokens": adapter.max_new_tokens, "device": "cpu"},
        batch_size=4,
        concurrency=1,
    )
    found.write_parquet(str(tmp_path / "out"))
    written = ray.data.read_parquet(str(tmp_path / "out")).take_all()
    ours = Extractor(adapter.folder, device="cpu", max_new_tokens=adapter.max_new_tokens)(rows)
    by_id = {row["id"]: row for row in written}
    assert len(written) == len(by_id) == len(rows)
    for row, one in zip(rows, ours, strict=True):
        there = by_id[row["id"]]
        assert (there["generated"], there["status"]) == (one.text, one.status)
        assert json.loads(there["record"])["id"] == row["id"]
