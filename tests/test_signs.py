"""Signs that a tokenizer does not know: seen, counted, spelled or refused, never lost."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase, T5Tokenizer

import eval as evaluation
import train_loop
from report2impression.batching.signs import HALVES, IF_UNKNOWN, SPELLED, Signs, Spelling, named
from report2impression.batching.tokens import tokenise
from report2impression.decoding.generate import to_text
from report2impression.weights.tokenizer import load_tokenizer
from tests.tiny import ROOT, Tiny, metrics, one_line

T5 = ROOT.parent / "shared" / "t5_tokenizer"
TEXTS = ("3×4 mm", "<4 mm", "−5 HU", "a ≥ b", "2 × 3 × 4", "×", "no sign")


@pytest.fixture(scope="module")
def t5(tiny: Tiny) -> PreTrainedTokenizerBase:
    """T5's own where it is at hand; else one that lacks even more signs."""
    return T5Tokenizer.from_pretrained(T5) if T5.is_dir() else load_tokenizer(str(tiny.base))


def ids_of(texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    tokens = tokenise(texts, tokenizer, max_tokens=50)
    return [tokens.row(i).tolist() for i in range(len(texts))]


@pytest.mark.skipif(not T5.is_dir(), reason="needs T5's tokenizer")
def test_an_unknown_sign_is_written_as_sentencepiece_does() -> None:
    import sentencepiece

    t5 = T5Tokenizer.from_pretrained(T5)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(T5 / "spiece.model"))
    wanted = [reference.decode(reference.encode(text)).strip() for text in TEXTS]
    assert to_text(t5, ids_of(TEXTS, t5)) == wanted
    assert wanted[:3] == ["3 ⁇ 4 mm", "⁇ 4 mm", "⁇ 5 HU"]


@pytest.mark.parametrize("text", ["10³", "2²", "1½ cm", "3¼", "5₂"])
def test_a_sign_never_becomes_a_digit_of_the_number_before_it(
    text: str, t5: PreTrainedTokenizerBase
) -> None:
    """A normaliser writes 10³ as 103."""
    (read,) = to_text(t5, ids_of((text,), t5))
    assert read.split("⁇")[0].strip() == text.removesuffix(" cm")[:-1]
    assert Signs(t5).unknown([text]).total() == 1
    assert to_text(t5, ids_of(("5 cm² a",), t5)) == ["5 cm2 a"]  # of a word it may


def test_other_outputs_are_decoded_as_before(t5: PreTrainedTokenizerBase) -> None:
    texts = ("no acute finding, 4 mm.", "left  lung", "")
    ids = ids_of(texts, t5)
    plain = [text.strip() for text in t5.batch_decode(ids, skip_special_tokens=True)]
    assert to_text(t5, ids) == plain
    unknown, end = t5.unk_token_id, t5.eos_token_id
    assert to_text(t5, [[unknown], [unknown, end, t5.pad_token_id]]) == ["⁇", "⁇"]


def test_unknown_tokens_are_counted(t5: PreTrainedTokenizerBase) -> None:
    tokens = tokenise(["3×4×5", "none", "×"], t5, max_tokens=50)
    assert tokens.n_unknown == 3 == (tokens.ids == t5.unk_token_id).sum()
    assert tokenise(["none"], t5, max_tokens=50).n_unknown == 0
    assert Signs(t5).unknown(["3×4×5", "a−b"]) == {"U+00D7": 2, "U+2212": 1}


def test_the_commonest_are_named() -> None:
    signs = Counter({f"U+{i:04X}": i for i in range(1, 9)})
    told = named(signs)
    assert told.startswith("U+0008 x 8, U+0007 x 7") and told.endswith("U+0003 x 3, ...")


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("3×4 mm", "3x4 mm"),
        ("−5 HU", "-5 HU"),
        ("2–3 mm", "2-3 mm"),
        ("1½ cm", "1 1/2 cm"),
        ("½ cm", "1/2 cm"),
        ("a ± b", "a +/- b"),
        ("12 µm", "12 um"),
        ("3·5 cm", "3.5 cm"),
        ("it’s “x”…", 'it\'s "x"...'),
        ("no sign\n at all", "no sign\n at all"),
    ],
)
@pytest.mark.skipif(not T5.is_dir(), reason="needs T5's tokenizer")
def test_signs_are_spelled(text: str, spelled: str) -> None:
    spelling = Spelling(T5Tokenizer.from_pretrained(T5))
    assert spelling(text) == spelled and spelling(spelled) == spelled


@pytest.mark.skipif(not T5.is_dir(), reason="needs T5's tokenizer")
def test_what_t5_lacks_is_said_in_words_it_knows() -> None:
    t5 = T5Tokenizer.from_pretrained(T5)
    spelling, signs = Spelling(t5), Signs(t5)
    assert spelling("<4 mm") == "less than 4 mm" and spelling("a ≤ 3") == "a at most 3"
    assert spelling("≥ 2 cm") == ">= 2 cm" and spelling("37 °C") == "37 °C"
    assert spelling("10³/µL") == "10**3/uL"
    for sign in (*SPELLED, *IF_UNKNOWN, *HALVES):
        assert signs.known(spelling(f"a{sign}b")), sign
    assert not signs.known(spelling("∞"))  # no spelling: it stays, and is told


def test_a_known_smaller_than_stays(tiny: Tiny) -> None:
    class Knows(Signs):
        def _is_known(self, sign: str) -> bool:
            return sign.isascii()

    spelling = Spelling(load_tokenizer(str(tiny.base)))
    spelling._signs = Knows(load_tokenizer(str(tiny.base)))
    assert spelling("<4 and ≤5") == "<4 and <=5"


def test_words_that_a_user_added_are_used(tiny: Tiny) -> None:
    t5 = T5Tokenizer.from_pretrained(T5 if T5.is_dir() else tiny.base)
    t5.add_tokens(["lesionword"])
    tokens = tokenise(["a lesionword here </s> <extra_id_0>"], t5, max_tokens=50)
    added, ids = t5.convert_tokens_to_ids("lesionword"), tokens.ids.tolist()
    assert ids.count(added) == 1 and "lesionword here" in to_text(t5, [ids])[0]
    assert ids.count(t5.eos_token_id) == 1  # the text's own is four signs
    assert t5.convert_tokens_to_ids("<extra_id_0>") not in ids


def pairs(folder: Path, n: int, prompt: str, impression: str) -> Path:
    for split in ("train", "validation", "test"):
        rows = [
            {"prompt": f"{prompt} finding {i}", "impressions": f"{impression} {i}"}
            for i in range(n)
        ]
        folder.mkdir(exist_ok=True)
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_they_are_told_before_training_and_in_the_evaluation(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pairs(tmp_path / "data", 8, "a nodule of 3×4 mm in the lung, no effusion", "nodule 3×4")
    run = tmp_path / "run"
    allowed = {"data__allow_unknown": "true", "max_steps": 1}
    train_loop.main(tiny.flags(run, data__path=data, **allowed))
    told = capsys.readouterr().out
    assert "train source: 8 unknown tokens (U+00D7 x 8)" in told and "written as ⁇" in told
    assert "× " not in told and "nodule" not in told
    assert metrics(run, "epoch")[0]["unknown_tokens"] == 16
    evaluation.main(["--cpu", f"--adapter={run / 'adapter'}", "--max_new_tokens=4"])
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    rails = {r["system"]: r for r in scores["guard_rails"] if r["name"] == "unknown_signs"}
    assert rails["source"]["value"] == 8
    assert all("(U+00D7 x 8)" in rails[side]["message"] for side in ("source", "reference"))
    spelled = tmp_path / "spelled"
    flags = tiny.flags(spelled, data__path=data, data__normalise="ascii", max_steps=1)
    train_loop.main(flags)
    assert "unknown tokens" not in capsys.readouterr().out
    evaluation.main(["--cpu", f"--adapter={spelled / 'adapter'}", "--max_new_tokens=4"])
    scores = json.loads((spelled / "evaluation" / "scores.json").read_text())
    assert not [r for r in scores["guard_rails"] if r["name"] == "unknown_signs"]


@pytest.mark.parametrize(
    ("prompt", "flags"),
    [
        ("所见 双肺清晰", {}),
        ("легкие чистые", {"data__normalise": "ascii"}),
        ("a × zygomatic", {"data__normalise": "stop"}),
    ],
)
def test_too_many_stop_the_run(
    tiny: Tiny,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    prompt: str,
    flags: dict[str, str],
) -> None:
    data = pairs(tmp_path / "data", 8, prompt, "clear")
    with pytest.raises(SystemExit) as ended:
        train_loop.main(tiny.flags(tmp_path / "run", data__path=data, **flags))
    assert ended.value.code == 3
    told = one_line(capfd.readouterr().err)
    assert "train source: " in told and "U+" in told and "--data.allow_unknown" in told
    assert not any(word in told for word in prompt.split() if len(word) > 3)
    assert not (tmp_path / "run" / "adapter").exists()
