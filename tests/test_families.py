"""Every kind of base that is read: it trains, merges, writes and is handed on as transformers and
PEFT alone would do it. docs/bases.md is the table of this file."""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from model import PaddedEngine, attach_lora
from report2impression.batching.collation import collate_packed, collate_padded
from report2impression.batching.tokens import Tokeniser, Tokens, tokenise
from report2impression.decoding.ct2 import convert
from report2impression.decoding.generate import generate
from report2impression.decoding.options import DecodingConfig
from report2impression.decoding.search import until
from report2impression.decoding.special import special_ids
from report2impression.engine.batch import PaddedBatch
from report2impression.engine.fast import FastEngine
from report2impression.engine.models import why_not_train
from report2impression.program.errors import ConfigError
from report2impression.runs.checkpoint import base_digest
from report2impression.weights.families import LEFT_OUT, SUPPORTED, check_lengths
from report2impression.weights.loading import load_adapter, load_base, merged
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.saving import save_model
from report2impression.weights.tokenizer import load_tokenizer
from tests.families import FAMILIES, make_base
from tests.test_fast_t5 import gradients
from tests.tiny import ROOT, Tiny

SOURCES = [
    "the lungs are clear, no acute",
    "heart size is normal with 10 mm",
    "of the left and right",
]
LABELS = ["no acute", "the heart is normal", "small"]
every = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of each base, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("bases")
    return cache(lambda name: make_base(name, folder / name.replace(" ", "_")))


@pytest.fixture(scope="module")
def opened(bases: Any) -> Any:
    """(base, tokenizer) of each; not to be changed."""

    def of(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        config = ModelConfig(path=str(bases(name)), dropout=0.0)
        return load_base(config), load_tokenizer(config.path)

    return cache(of)


def adapted(base: PreTrainedModel) -> PeftModel:
    """A copy with an adapter that acts."""
    model = attach_lora(copy.deepcopy(base), LoraSettings(r=2, alpha=4.0, dropout=0.0))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def batch_of(tokenizer: PreTrainedTokenizerBase, pad_id: int) -> PaddedBatch:
    """Sources and labels of different lengths."""
    source = tokenise(SOURCES, tokenizer, max_tokens=60)
    labels = Tokeniser(tokenizer)(LABELS, max_tokens=60, around="label")
    rows = [(source.row(i), labels.row(i)) for i in range(len(SOURCES))]
    return collate_padded(rows, pad_id=pad_id)


@every
def test_it_trains_by_the_loss_of_transformers_and_every_layer_learns(
    opened: Any, name: str
) -> None:
    base, tokenizer = opened(name)
    model = adapted(base).eval()
    batch = batch_of(tokenizer, base.config.pad_token_id)
    assert (batch.labels == tokenizer.eos_token_id).sum() == len(LABELS)
    loss = PaddedEngine(model)(batch)
    known = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if FAMILIES[name].model_type == "mbart":  # its own shift takes the last label for the language
        starts = torch.full_like(batch.labels[:, :1], base.config.decoder_start_token_id)
        shifted = torch.cat([starts, batch.labels[:, :-1]], 1)
        known["decoder_input_ids"] = shifted.masked_fill(shifted < 0, base.config.pad_token_id)
    theirs = model(**known, labels=batch.labels).loss * (batch.labels >= 0).sum()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    loss.backward()
    pairs = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert pairs and all(".lora_" in n for n in pairs)
    idle = [n for n, gradient in pairs.items() if gradient is None or not gradient.any()]
    assert not idle
    assert not any({*n.split(".")} & {*LEFT_OUT, "lm_head"} for n in pairs)


@every
def test_the_fast_engine_covers_what_the_table_says(opened: Any, name: str) -> None:
    base, tokenizer = opened(name)
    model = adapted(base)
    assert (why_not_train(model) is None) == (table()[name][1] == "fast")
    if why_not_train(model):
        return
    batch = batch_of(tokenizer, base.config.pad_token_id)
    rows = [
        (ids[mask.bool()].int().numpy(), labels[labels >= 0].int().numpy())
        for ids, mask, labels in zip(*batch, strict=True)
    ]
    start = base.config.decoder_start_token_id
    packed = collate_packed(rows, start_id=start, pad_id=base.config.pad_token_id, multiple=1)
    twin = copy.deepcopy(model)
    theirs, ours = PaddedEngine(model)(batch), FastEngine(twin, torch.float32)(packed)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs.backward()
    ours.backward()
    reference, found = gradients(model), gradients(twin)
    assert reference.keys() == found.keys()
    largest = max(float(gradient.norm()) for gradient in reference.values())
    for layer, gradient in reference.items():
        error = float((found[layer] - gradient).norm())
        assert error <= 1e-4 * float(gradient.norm()) + 1e-6 * largest, layer


@every
def test_an_adapter_is_plain_peft_and_merges(
    opened: Any, bases: Any, tmp_path: Path, name: str
) -> None:
    base, tokenizer = opened(name)
    model = adapted(base).eval()
    batch = batch_of(tokenizer, base.config.pad_token_id)
    with torch.no_grad():
        before = PaddedEngine(base)(batch).item()
        loss = PaddedEngine(model)(batch).item()
        assert abs(loss - before) > 1e-3
        save_model(model, tmp_path / "adapter", write_extras=lambda _: None)
        plain = AutoModelForSeq2SeqLM.from_pretrained(bases(name), dtype=torch.float32)
        plain = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
        plain.config.decoder_start_token_id = base.config.decoder_start_token_id
        assert PaddedEngine(plain)(batch).item() == pytest.approx(loss, rel=1e-6)
        whole = merged(load_adapter(copy.deepcopy(base), tmp_path / "adapter"))
        assert PaddedEngine(whole)(batch).item() == pytest.approx(loss, rel=1e-4)
        save_model(whole, tmp_path / "model", write_extras=lambda _: None)
        again = load_base(ModelConfig(path=str(tmp_path / "model")))
        assert PaddedEngine(again)(batch).item() == pytest.approx(loss, rel=1e-4)


def alone(model: Any, source: Tokens, n: int, beams: int) -> list[list[int]]:
    """transformers' `generate`, one source at a time."""
    special = special_ids(model)
    rows = []
    for i in range(len(source.lengths)):
        found = model.generate(
            torch.from_numpy(source.row(i).astype(np.int64))[None],
            max_new_tokens=n,
            num_beams=beams,
            do_sample=False,
            decoder_start_token_id=special.start,
            forced_eos_token_id=None,  # BART's; our outputs are cut where they are cut
        )
        rows.append(until(found[0, 1:].tolist(), special))
    return rows


@pytest.mark.parametrize("beams", [1, 2])
@every
def test_it_writes_what_transformers_writes(opened: Any, name: str, beams: int) -> None:
    base, tokenizer = opened(name)
    source = tokenise(SOURCES, tokenizer, max_tokens=60)
    with torch.no_grad():
        theirs = alone(base, source, 8, beams)
    config = DecodingConfig(max_new_tokens=8, num_beams=beams)
    assert [output.ids for output in generate(base, source, config)] == theirs
    assert len({tuple(ids) for ids in theirs}) > 1, "the same output for every source"


@every
def test_sources_are_those_of_its_own_tokenizer(opened: Any, name: str) -> None:
    _, tokenizer = opened(name)
    source = tokenise(SOURCES, tokenizer, max_tokens=60)
    theirs = [tokenizer(text).input_ids for text in SOURCES]
    assert [source.row(i).tolist() for i in range(len(SOURCES))] == theirs
    cut = tokenise(SOURCES[:1], tokenizer, max_tokens=9).row(0).tolist()
    assert cut == tokenizer(SOURCES[0], truncation=True, max_length=9).input_ids


@every
def test_dropout_is_of_one_run_and_the_base_keeps_its_own(
    bases: Any, opened: Any, tmp_path: Path, name: str
) -> None:
    base, tokenizer = opened(name)
    loud = load_base(ModelConfig(path=str(bases(name)), dropout=0.5))
    assert base_digest(loud) == base_digest(base)
    engine, batch = PaddedEngine(loud).train(), batch_of(tokenizer, base.config.pad_token_id)
    with torch.no_grad():
        assert engine(batch).item() != engine(batch).item()
        save_model(loud, tmp_path / "model", write_extras=lambda _: None)
    again = load_base(ModelConfig(path=str(tmp_path / "model")))
    assert base_digest(again) == base_digest(base)


def test_another_kind_is_refused_by_one_line(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for load in (load_tokenizer, lambda path: load_base(ModelConfig(path=path))):
        with pytest.raises(ConfigError, match="is a 'gpt2': only these .* t5gemma2") as error:
            load(str(tmp_path))
        assert "\n" not in str(error.value)


def test_mbart_without_a_language_is_refused(bases: Any, tmp_path: Path) -> None:
    config = (bases("mBART") / "config.json").read_text()
    changed = re.sub(r'"decoder_start_token_id": \d+', '"decoder_start_token_id": null', config)
    for file in bases("mBART").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(changed)
    with pytest.raises(ConfigError, match="no decoder_start_token_id: add the id"):
        load_base(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "n_source", "n_target"),
    [("BART", 129, 9), ("BART", 9, 129), ("LED", 129, 9), ("LED", 9, 65)],
)
def test_more_tokens_than_places_are_refused(
    opened: Any, name: str, n_source: int, n_target: int
) -> None:
    config = opened(name)[0].config
    check_lengths(config, min(n_source, 128), min(n_target, 64))
    with pytest.raises(ConfigError, match=r"has \d+ places for (source|target) tokens, not"):
        check_lengths(config, n_source, n_target)


@pytest.mark.parametrize("name", ["BART", "ByT5"])
def test_ctranslate2_is_refused_where_it_was_not_tried(
    opened: Any, tmp_path: Path, name: str
) -> None:
    base, tokenizer = opened(name)
    with pytest.raises(ConfigError, match="t5 with SentencePiece only"):
        convert(base, tokenizer, tmp_path / "ct2", "fp32")


@pytest.mark.parametrize("targets", [("q_proj",), ("fc1",), ("lm_head",), ("query_global",)])
def test_named_layers_stay_out_of_pictures_and_heads(opened: Any, targets: tuple[str, ...]) -> None:
    """SigLIP's layers have the names of the text's."""
    settings = LoraSettings(r=2, target_modules=targets)
    for name in ("T5Gemma 2", "LED"):
        base = copy.deepcopy(opened(name)[0])
        try:
            model = attach_lora(base, settings)
        except ConfigError:
            continue
        layers = [n for n, m in model.named_modules() if hasattr(m, "lora_A")]
        assert layers and not any({*n.split(".")} & {*LEFT_OUT, "lm_head"} for n in layers)


COLUMNS = [
    "base",
    "`model_type`",
    "engine",
    "trains",
    "loss = HF",
    "merges",
    "writes = HF",
    "exports",
    "two processes",
]


@cache
def table() -> dict[str, list[str]]:
    """Of docs/bases.md: base -> the cells behind it."""
    lines = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert rows[0] == COLUMNS
    return {name: cells for name, *cells in rows[2 : 2 + len(FAMILIES)]}


def test_the_table_of_bases_is_this_file() -> None:
    """Each cell is a test, here or in tests/slow/test_families.py."""
    assert {name: cells[0] for name, cells in table().items()} == {
        name: f"`{family.model_type}`" for name, family in FAMILIES.items()
    }
    assert {cell for _, _, *cells in table().values() for cell in cells} == {"yes"}
    assert {family.model_type for family in FAMILIES.values()} == set(SUPPORTED)
