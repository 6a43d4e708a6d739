"""data.py: datasets of both objectives, padding, batches in the plan's order."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import PreTrainedTokenizerBase

from data import DenoiseDataset, ExtractDataset, build_dataset, sentinel_ids
from report2impression.batching.collation import (
    IGNORE_INDEX,
    Collate,
    Example,
    collate_packed,
    collate_padded,
    collator,
)
from report2impression.batching.dataset import PlannedDataset, batches
from report2impression.batching.token_store import survey
from report2impression.engine.batch import Batch, PackedBatch, PaddedBatch
from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.options import DataConfig
from report2impression.reading.pairs import BadRow, Pair, Split
from report2impression.reading.sources import read_pairs, tell_skipped
from tests.test_tokens import invented, tiny_tokenizer

PAD = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def split_of(pairs: list[Pair]) -> Split:
    return Split("train", pairs, len(pairs), [])


def invented_split(n: int) -> Split:
    texts = zip(invented(n, seed=1), invented(n, seed=2), strict=True)
    return split_of([Pair(f"r{i}", prompt, mark) for i, (prompt, mark) in enumerate(texts)])


def built(
    split: Split, tokenizer: PreTrainedTokenizerBase, config: DataConfig, **how: Any
) -> PlannedDataset:
    """The dataset of pairs in memory."""
    return build_dataset(
        survey(split.name, lambda: split.pairs), lambda: split.pairs, tokenizer, config, **how
    )


def example(n_source: int, n_target: int, first: int = 5) -> Example:
    source = np.arange(first, first + n_source, dtype=np.int32)
    return source, np.arange(first + 100, first + 100 + n_target, dtype=np.int32)


def test_padding_values_and_mask() -> None:
    batch = collate_padded([example(3, 1), example(1, 2, first=20)], pad_id=PAD)
    assert batch.input_ids.tolist() == [[5, 6, 7], [20, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[105, IGNORE_INDEX], [120, 121]]
    assert {tensor.dtype for tensor in batch} == {torch.int64}


def test_a_real_token_with_the_id_of_padding_stays_visible() -> None:
    source = np.array([4, PAD, 4], dtype=np.int32)
    batch = collate_padded([(source, source)], pad_id=PAD)
    assert batch.attention_mask.tolist() == [[1, 1, 1]]
    assert batch.labels.tolist() == [[4, PAD, 4]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.sampled_from([1, 8, 16]),
)
def test_padding_keeps_every_token(sizes: list[tuple[int, int]], multiple: int) -> None:
    examples = [example(*size) for size in sizes]
    batch = collate_padded(examples, pad_id=PAD, multiple=multiple)
    for name, side in (("input_ids", 0), ("labels", 1)):
        longest = max(size[side] for size in sizes)
        width = getattr(batch, name).shape[1]
        assert width % multiple == 0 and longest <= width < longest + multiple
    for row, (source, target) in enumerate(examples):
        assert batch.input_ids[row][: len(source)].tolist() == source.tolist()
        assert (batch.input_ids[row][len(source) :] == PAD).all()
        assert batch.attention_mask[row].tolist() == [
            int(i < len(source)) for i in range(batch.input_ids.shape[1])
        ]
        assert batch.labels[row][: len(target)].tolist() == target.tolist()
        assert (batch.labels[row][len(target) :] == IGNORE_INDEX).all()


def padded(device: str) -> Collate:
    return collator(packed=False, start_id=0, pad_id=PAD, device=torch.device(device))


def test_only_cuda_rounds_up() -> None:
    for device, width in (("cpu", 3), ("cuda", 16)):
        batch = cast(PaddedBatch, padded(device)([example(3, 3)]))
        assert [tensor.shape[1] for tensor in batch] == [width] * 3
    for device, n_tokens in (("cpu", 16), ("cuda", 128)):
        packed = collator(packed=True, start_id=0, pad_id=PAD, device=torch.device(device))
        assert len(cast(PackedBatch, packed([example(3, 3)])).source_ids) == n_tokens


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    multiple=st.sampled_from([1, 16, 128]),
)
def test_packed_tokens_find_their_places_and_back(
    lengths: list[tuple[int, int]], multiple: int
) -> None:
    examples = [example(source, target) for source, target in lengths]
    batch = collate_packed(examples, start_id=0, pad_id=PAD, multiple=multiple)
    sides = [(batch.source_ids, batch.sources, 0), (batch.labels, batch.targets, 1)]
    for ids, ((rows, slots),), part in sides:
        n_tokens = sum(pair[part] for pair in lengths)
        assert len(ids) == len(rows) and len(ids) % multiple == 0 and slots.shape[1] % 16 == 0
        assert slots.view(-1)[rows[:n_tokens]].tolist() == list(range(n_tokens))
        assert not set(rows[n_tokens:].tolist()) & set(rows[:n_tokens].tolist())
        for b, row in enumerate(examples):
            assert ids[slots[b, : len(row[part])]].tolist() == row[part].tolist()
    assert batch.keys[0].sum(1).tolist() == [source for source, _ in lengths]
    labels, decoder = batch.labels.tolist(), batch.decoder_ids.tolist()
    starts = np.cumsum([0] + [target for _, target in lengths]).tolist()
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        assert decoder[begin:end] == [0, *labels[begin : end - 1]]
    assert set(labels[starts[-1] :]) <= {IGNORE_INDEX}


@given(lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=9))
def test_grids_of_like_lengths_hold_every_token_once(lengths: list[tuple[int, int]]) -> None:
    draw = np.random.default_rng(0)
    examples: list[Example] = [
        (draw.integers(2, 999, n).astype(np.int32), draw.integers(2, 999, m).astype(np.int32))
        for n, m in lengths
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report2impression.batching.collation.SHORT", 8)
        batch = collate_packed(examples, start_id=0, pad_id=PAD, multiple=16, cut=True)
    found, start = [], {"source": 0, "target": 0}
    for keys, source, target in zip(batch.keys, batch.sources, batch.targets, strict=True):
        sides = {}
        grids = {"source": (batch.source_ids, source), "target": (batch.labels, target)}
        for side, (ids, (rows, slots)) in grids.items():
            tokens = ids[start[side] : start[side] + len(rows)]
            kept = tokens[: int(keys.sum() if side == "source" else (tokens >= 0).sum())]
            where = rows[: len(kept)]
            assert torch.equal(tokens[slots.flatten()[where]], kept)  # there and back
            sides[side] = [kept[where // slots.shape[1] == b].tolist() for b in range(len(slots))]
            start[side] += len(rows)
        found += list(zip(sides["source"], sides["target"], strict=True))
        longest = int(keys.sum(1).max())
        assert longest <= 8 or int(keys.sum(1).min()) > 0.75 * longest
    assert start == {"source": len(batch.source_ids), "target": len(batch.labels)}
    assert sorted(found) == sorted((s.tolist(), t.tolist()) for s, t in examples)


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_is_moved_and_pinned_whole(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of it, also those in lists of grids, and it stays what it is."""
    collate = collator(packed=packed, start_id=0, pad_id=PAD, device=torch.device("cpu"))
    batch = collate([example(200, 3), example(9, 2)])
    assert not packed or len(cast(PackedBatch, batch).sources) == 2
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor, *_: object) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    for moved, device in ((batch.to("meta"), "meta"), (pin_memory(batch), "cpu")):
        assert type(moved) is type(batch)
        tensors = tree_leaves(moved)
        assert [t.shape for t in tensors] == [t.shape for t in tree_leaves(batch)]
        assert {t.device.type for t in tensors} == {device}
    assert len(pinned) == len(tree_leaves(batch))


@pytest.mark.parametrize(("multiple", "width"), [(1, 1), (16, 16)])
def test_no_examples_give_one_padding_token_and_no_label(multiple: int, width: int) -> None:
    batch = collate_padded([], pad_id=7, multiple=multiple)
    assert batch.input_ids.tolist() == [[7] * width]
    assert batch.attention_mask.tolist() == [[1] + [0] * (width - 1)]
    assert batch.labels.tolist() == [[IGNORE_INDEX] * width]


def test_extract_reads_findings_and_labels_the_impression(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    split = invented_split(12)
    config = DataConfig(prefix="small: ", max_source_tokens=12, cache_dir=str(tmp_path))
    data = built(split, tokenizer, config)
    assert isinstance(data, ExtractDataset)
    assert list(data.ids) == [f"r{i}" for i in range(12)] and len(data) == 12
    for i, pair in enumerate(split.pairs):
        source, target = data[i]
        whole = tokenizer("small: " + pair.prompt)["input_ids"]
        assert source.tolist() == (whole if len(whole) <= 12 else [*whole[:11], whole[-1]])
        assert target.tolist() == tokenizer(pair.impression)["input_ids"]
        assert (data.source_lengths[i], data.target_lengths[i]) == (len(source), len(target))
    assert data.for_epoch(3) is data


def test_statistics_of_extract(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    config = DataConfig(max_source_tokens=20, max_target_tokens=12, cache_dir=str(tmp_path))
    data = built(invented_split(40), tokenizer, config)
    source, target = data.statistics()
    assert (source.split, source.side, target.side) == ("train", "source", "target")
    assert (source.examples, target.examples) == (40, 40)
    assert (source.longest, target.longest) == (20, 12)
    assert 0 < source.truncated < 40 and 0 < target.truncated < 40
    assert source.mean == pytest.approx(data.source_lengths.mean())
    assert source.mean <= source.p95 <= source.longest


def test_denoise_hides_parts_of_the_whole_report(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    split = invented_split(12)
    split.pairs.append(Pair("long", " ".join(invented(6)), "no acute mass"))
    config = DataConfig(max_source_tokens=48, cache_dir=str(tmp_path))
    data = built(split, tokenizer, config, objective="denoise", seed=3)
    assert isinstance(data, DenoiseDataset)
    for i, pair in enumerate(split.pairs):
        whole = tokenizer(f"{pair.prompt} impression {pair.impression}")["input_ids"][:-1][:48]
        assert data.report.row(i).tolist() == whole  # no prefix, no end-of-sequence
        before = tokenizer(f"{pair.prompt} impression")["input_ids"][:-1]
        assert data.impressions[i] == min(len(before), 48)
        source, target = data[i]
        words = {*source.tolist(), *target.tolist()} - {*sentinel_ids(tokenizer).tolist(), 1}
        assert words == set(whole)
        assert (data.source_lengths[i], data.target_lengths[i]) == (len(source), len(target))
    (row,) = data.statistics()
    assert (row.side, row.examples, row.longest) == ("report", 13, 48)
    other = built(split, tokenizer, config, objective="denoise", seed=4)
    drawn = [d[12][0].tolist() for d in (data, other, data.for_epoch(1))]
    assert drawn[0] != drawn[1] and drawn[0] != drawn[2]


def test_denoise_refuses_a_report_that_is_too_short(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.MIN_TOKENS", 20)  # the mark alone is longer than the real one
    split = split_of([Pair("long", "the lung is clear " * 4, "no mass"), Pair("tiny", "l", "m")])
    config = DataConfig(max_source_tokens=32, cache_dir=str(tmp_path))
    with pytest.raises(DataError, match="'tiny' of split train is too short"):
        built(split, tokenizer, config, objective="denoise")


def test_sentinel_ids_in_order_of_use(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = sentinel_ids(tokenizer)
    assert len(ids) == 100 and ids.dtype == np.int32
    names = [f"<extra_id_{i}>" for i in range(100)]
    assert ids.tolist() == tokenizer.convert_tokens_to_ids(names)


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ({"a": 0, "<extra_id_0>": 9, "<extra_id_1>": 8, "<extra_id_3>": 7}, [9, 8]),
        ({"a": 0, "<extra_id_0>": 9}, None),
        ({"a": 0, "b": 1}, None),
    ],
)
def test_sentinels_end_at_the_first_gap(
    vocabulary: dict[str, int], expected: list[int] | None
) -> None:
    stub = cast(Any, SimpleNamespace(get_vocab=lambda: vocabulary))
    if expected:
        assert sentinel_ids(stub).tolist() == expected
    else:
        with pytest.raises(ConfigError, match="no <extra_id_N> sentinels"):
            sentinel_ids(stub)


def test_batches_keep_the_given_order(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    data = built(invented_split(9), tokenizer, DataConfig(cache_dir=str(tmp_path)))
    plan = [np.array([8, 0]), np.array([], dtype=np.int64), np.array([3]), np.array([1, 2, 4])]
    read = list(batches(data, plan, padded("cpu")))
    assert len(read) == 4
    for indices, batch in zip(plan, read, strict=True):
        rows = [row[mask.bool()].tolist() for row, mask in zip(*first_two(batch), strict=True)]
        expected = [data[i][0].tolist() for i in indices.tolist()]
        assert rows == (expected or [[PAD]])
    assert (read[1].labels == IGNORE_INDEX).all()


def first_two(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(batch, PaddedBatch)
    return batch.input_ids, batch.attention_mask


def test_read_pairs_passes_every_setting(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(
        '{"f": "lung clear", "i": "normal"}\n{"f": "", "i": "x"}\n'
    )
    settings: dict[str, Any] = {"path": str(tmp_path), "source_column": "f", "target_column": "i"}
    split = read_pairs(DataConfig(**settings, on_bad_row="skip"), "test")
    assert [pair.impression for pair in split.pairs] == ["normal"]
    with pytest.raises(DataError, match="line 2"):
        read_pairs(DataConfig(**settings), "test")


def test_limits_that_leave_no_room_are_refused() -> None:
    DataConfig(max_source_tokens=4, max_target_tokens=2)
    with pytest.raises(ConfigError, match="must be at least"):
        DataConfig(max_source_tokens=3)
    with pytest.raises(ConfigError, match="must be at least"):
        DataConfig(max_target_tokens=1)


def test_skipped_rows_are_told_by_place(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [BadRow(i, f"line {i}", "is empty") for i in range(7)]
    tell_skipped("train", 1, [], 0)
    tell_skipped("validation", 9, bad, 7)
    tell_skipped("test", 9000, bad[:5], 1234)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("validation: 7 of 9 rows skipped (line 0: is empty; line 1")
    assert first.endswith("line 4: is empty, ...)")
    assert last.startswith("test: 1,234 of 9,000 rows skipped (line 0") and last.endswith(", ...)")
