"""The faithfulness check on sentences written for the purpose; what must hold for any text; and
the bench that measures it. Text of reports appears here only because it is made up."""

import functools
import json
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from negspacy.negation import Negex
from spacy.language import Language
from spacy.matcher import Matcher

from bench.faithfulness import detection as bench
from bench.faithfulness.clean_impressions import Report, restate
from bench.faithfulness.injections import CHECK_OF, inject
from report2impression.corpora.synthetic import generate
from report2impression.scoring.faithfulness import claims, negation
from report2impression.scoring.faithfulness.checks import CHECKS, findings, rate, rates, unsupported
from report2impression.scoring.faithfulness.clinical_terms import FINDING, lexicon, phrases
from report2impression.scoring.faithfulness.marks import LEVEL, SIDE, SIZE, marks
from report2impression.scoring.faithfulness.negation import Statement, parse

# (report, impression, the text that the check must mark; "" = none)
MEASUREMENT = [
    ("nodule of 12 mm", "12 mm nodule", ""),
    ("nodule of 12 mm", "1.2 cm nodule", ""),
    ("nodule of 1.2 cm", "12 mm nodule", ""),
    ("nodule of 12 mm", "12 cm nodule", "12 cm"),
    ("nodule of .5 cm", "5 mm nodule", ""),
    ("nodule of 5 mm", ".5 cm nodule", ""),
    ("nodule of .5 cm", "6 mm nodule", "6 mm"),
    ("nodule of 50 mm", ".5 cm nodule", ".5 cm"),
    ("nodule of 0,5 cm", "5 mm nodule", ""),
    ("nodule of 5 mm", "0,5 cm nodule", ""),
    ("nodule of 2,1 x ,8 cm", "21 x 8 mm nodule", ""),
    ("nodule of 2.1x.8 cm", "2,1 x 0,8 cm nodule", ""),
    ("nodule of 2,1 cm", "1 cm nodule", "1 cm"),
    ("nodes,5 mm each", "5 mm nodes", ""),
    ("bladder volume of 1,200 ml", "bladder volume of 1200 ml", ""),
    ("cyst of 1,234 cm", "cyst of 1.234 cm", ""),
    ("bladder volume of 1,200 ml", "bladder volume of 200 ml", "200 ml"),
    ("nodule of 12 mm", "13 mm nodule", "13 mm"),
    ("mass of 3 x 4 cm", "3 x 4 cm mass", ""),
    ("mass of 3 x 4 cm", "4 cm mass", ""),
    ("mass of 3 x 4 cm", "30 by 40 mm mass", ""),
    ("mass of 3 x 4 cm", "3 x 5 cm mass", "3 x 5 cm"),
    ("mass of 3 x 4 x 5 cm", "5 cm mass", ""),
    ("mass of 4 3 x 2 8 cm", "4.3 cm mass", ""),  # the decimal points are lost in such reports
    ("mass of 4.3 cm", "4 3 cm mass", ""),
    ("mass of 19 mm", "2 cm mass", ""),  # rounded
    ("mass of 14 mm", "2 cm mass", "2 cm"),
    ("nodule of 4 to 6 mm", "6 mm nodule", ""),
    ("a nodule is seen", "5 mm nodule", "5 mm"),
    ("nodule of 12 mm", "nodule", ""),
    ("20 ml of fluid", "20 cc of fluid", ""),
    ("20 ml of fluid", "20 mm of fluid", "20 mm"),
    ("nodule of 8-mm", "8mm nodule", ""),
]
LATERALITY = [
    ("right pleural effusion", "right pleural effusion", ""),
    ("right pleural effusion", "left pleural effusion", "left"),
    ("right pleural effusion left lung clear", "left pleural effusion", "left"),
    ("right pleural effusion. the left lung is clear.", "left pleural effusion", "left"),
    ("bilateral pleural effusions", "left pleural effusion", ""),
    ("left pleural effusion and right pleural effusion", "bilateral pleural effusions", ""),
    ("left pleural effusion", "bilateral pleural effusions", "bilateral"),
    ("opacity in the left lower lobe and right pleural effusion", "left opacity", ""),
    ("opacity in the left lower lobe and right pleural effusion", "right opacity", "right"),
    ("opacity in the left lower lobe and right pleural effusion", "left effusion", "left"),
    ("opacities in both lungs", "bilateral opacities", ""),
    ("opacities in the lung bases", "bibasilar opacities", ""),
    ("left adrenal nodule right renal cyst", "right adrenal nodule", "right"),
    ("the right collecting system is dilated", "left hydronephrosis", "left"),
    ("effusion on the left", "left effusion", ""),
    ("there is a rll opacity", "right lower lobe opacity", ""),
    ("there is a ____ opacity", "left opacity", ""),  # the removed word may have been the side
    ("normal chest", "no left effusion", ""),
    ("opacity in the right apex and at the left base", "bilateral opacities", ""),
    ("right effusion", "right effusion left lateral decubitus film may help", ""),
]
LEVEL_CASES = [
    ("disc herniation at l4-l5", "l4-5 disc herniation", ""),
    ("disc herniation at l4-5", "disc herniation at l4-l5", ""),
    ("disc herniation at l4/5", "disc herniation at l4-l5", ""),
    ("disc herniation at l4-l5", "disc herniation at l3-l4", "l3-l4"),
    ("compression fracture of t12", "t12 compression fracture", ""),
    ("compression fracture of t12", "t11 compression fracture", "t11"),
    ("fractures of t6 through t9", "t8 fracture", ""),
    ("fracture of c3 and stenosis at c5-c6", "stenosis at c3-c4", "c3-c4"),
    ("right upper lobe pneumonia", "right upper lobe pneumonia", ""),
    ("right upper lobe pneumonia", "right lower lobe pneumonia", "lower"),
    ("opacity at the left base", "left lower lobe opacity", ""),
    ("nodule in the right apex", "right upper lobe nodule", ""),
    ("opacity in the lingula", "left upper lobe opacity", ""),
    ("acute infarct in the left frontal lobe", "left parietal infarct", "parietal"),
    ("fracture of the right 7th rib", "right 7th rib fracture", ""),
    ("fracture of the right 7th rib", "right 8th rib fracture", "8th"),
    ("t2 hyperintense lesion in the liver", "liver lesion", ""),
    ("l5-s1 disc bulge", "disc bulge at l5/s1", ""),
]
NEGATION = [
    ("no evidence of pneumothorax", "pneumothorax", "pneumothorax"),
    ("no evidence of pneumothorax", "no pneumothorax", ""),
    ("there is a pneumothorax", "no evidence of pneumothorax", "pneumothorax"),
    ("the pneumothorax has resolved", "pneumothorax", "pneumothorax"),
    ("the pneumothorax has resolved", "no pneumothorax", ""),
    ("lungs are clear without effusion", "pleural effusion", "pleural effusion"),
    ("no change in the effusion", "pleural effusion", ""),
    ("no change in the effusion", "no effusion", "effusion"),
    ("cannot exclude pneumonia", "possible pneumonia", ""),
    ("pneumonia cannot be excluded", "pneumonia", ""),
    ("no large pleural effusion", "small pleural effusion", ""),
    ("no acute fracture", "acute fracture", "fracture"),
    ("old rib fracture", "no acute fracture", ""),
    ("no effusion or pneumothorax mild cardiomegaly", "cardiomegaly", ""),
    ("no effusion or pneumothorax mild cardiomegaly", "no cardiomegaly", "cardiomegaly"),
    ("no consolidation effusion or pneumothorax", "consolidation", "consolidation"),
    ("the heart is not enlarged", "cardiomegaly", "cardiomegaly"),
    ("the heart is normal in size", "cardiomegaly", "cardiomegaly"),
    ("left effusion no right effusion", "right effusion", "effusion"),
    ("left effusion no right effusion", "left effusion", ""),
    ("the lungs are clear thoracic spondylosis", "thoracic spondylosis", ""),
]
COMPARISON = [
    ("there is an effusion", "unchanged effusion", "unchanged"),
    ("there is an effusion", "stable effusion", "stable"),
    ("there is an effusion", "new effusion", "new"),
    ("there is an effusion", "effusion compared to prior study", "compared to"),
    ("there is an effusion", "effusion increased since the prior exam", "increased"),
    ("the effusion is unchanged", "stable effusion", ""),
    ("comparison is made to ____ there is an effusion", "increased effusion since prior", ""),
    ("the effusion has increased since ____", "effusion increased since ____", ""),
    ("interstitial markings are prominent", "increased interstitial markings", ""),
    ("there is an effusion", "effusion recommend comparison with prior study", ""),
    ("there is a nodule", "nodule in the absence of prior studies interval followup", ""),
    ("there is a nodule", "new nodule biopsy recommended", "new"),
    ("the effusion is again seen", "persistent effusion", ""),
    ("the lungs are clear", "clear lungs", ""),
]
ADDED = [
    ("the lungs are clear", "hiatal hernia", "hiatal hernia"),
    ("the lungs are clear", "no hiatal hernia", ""),
    ("there is consolidation in the left lobe", "pneumonia", ""),  # a sign that it is read from
    ("the gallbladder contains stones", "cholelithiasis", ""),
    ("dilated bowel loops with a transition point", "small bowel obstruction", ""),
    ("there is an effusion", "effusion and pulmonary embolism", "pulmonary embolism"),
    ("there is an effusion", "effusion may represent pneumonia", ""),  # only suspected
    ("there is an effusion", "effusion cannot exclude pneumonia", ""),
    ("heart size is upper limits of normal", "borderline cardiomegaly", ""),
    ("the aorta is tortuous", "acute appendicitis", "appendicitis"),
    ("enlarged cardiac silhouette", "cardiomegaly", ""),
    ("the heart is mildly enlarged", "cardiomegaly", ""),
    ("lungs are clear", "fractures may not be demonstrated", ""),
    ("there is a nodule", "aortic aneurysm", "aortic aneurysm"),
]
GOLDEN = [
    pytest.param(check, *case, id=f"{check}: {case[0][:40]} | {case[1][:30]}")
    for check, cases in zip(
        CHECKS, (MEASUREMENT, LATERALITY, LEVEL_CASES, NEGATION, COMPARISON, ADDED), strict=True
    )
    for case in cases
]
REPORTS = [report.prompt for report in generate(40, seed=3)]
WORDS = re.findall(r"\S+", " ".join(REPORTS[:10])) + ["l4-5", "3.2", "cm", "____", "\n", "é", "1."]
texts = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)


@pytest.mark.parametrize(("check", "source", "impression", "marked"), GOLDEN)
def test_what_each_check_marks(check: str, source: str, impression: str, marked: str) -> None:
    spans = findings(source, impression)[check]
    assert [impression[s.start : s.end] for s in spans[:1]] == ([marked] if marked else [])


@pytest.mark.parametrize("source", REPORTS)
def test_a_sentence_of_the_report_is_supported(source: str) -> None:
    for statement in parse(source):
        said = source[statement.start : statement.end]
        found = findings(source, said)
        assert not any(found.values()), (said, found)


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_spans_lie_in_the_impression_and_reasons_hold_no_text(source: str, impression: str) -> None:
    found = findings(source, impression)
    assert tuple(found) == CHECKS
    for span in (span for spans in found.values() for span in spans):
        assert 0 <= span.start < span.end <= len(impression)
        assert impression[span.start : span.end].strip()
        assert span.reason in REASONS
    assert findings(source, impression) == found


REASONS = {
    *("no such measurement in the report", "no prior study in the report", "not in the report"),
    *("other side", "other level", "no such side in the report", "no such level in the report"),
    *("the report denies it", "the report states it", "the report calls the organ normal"),
}


def test_empty_texts() -> None:
    assert not any(findings("", "").values())
    assert not any(findings("there is a nodule", "").values())
    assert findings("", "left effusion")["added finding"]


def test_capitals_and_stops_change_nothing() -> None:
    source = "There is a 12 mm nodule in the RIGHT lower lobe. No pneumothorax, effusion. L4-L5."
    assert not any(findings(source, "1.2 cm right lower lobe nodule. No effusion.").values())
    assert findings(source, "12 mm LEFT lower lobe nodule.")["laterality"]


def test_unsupported_and_rates() -> None:
    flags = unsupported(["right effusion", "no edema"], ["left effusion", "no edema"])
    assert tuple(flags) == CHECKS
    assert flags["laterality"].tolist() == [True, False]
    assert flags["laterality"].dtype == bool
    figures = rates(flags)
    assert figures["laterality"]["per_100"] == 50
    assert json.loads(json.dumps(figures)) == figures


def test_the_interval_is_wilsons() -> None:
    # Wilson (1927), as tabulated for 10 of 100
    low, high = rate(10, 100)["interval"]
    assert (round(low, 2), round(high, 2)) == (5.52, 17.44)


def test_sizes_that_differ_or_are_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        unsupported(["a"], [])
    with pytest.raises(ValueError, match="0 reports"):
        rates({"level": np.zeros(0, bool)})


def test_negation_is_that_of_the_term_set_not_of_a_word() -> None:
    def denied(text: str) -> dict[str, bool]:
        terms = [term for statement in parse(text) for term in statement.terms]
        return {text[t.start : t.end]: t.denied for t in terms if t.kind == FINDING}

    assert denied("no pneumonia effusions edema or masses") == dict.fromkeys(
        ("pneumonia", "effusions", "edema", "masses"), True
    )
    assert denied("small effusion but no edema") == {"effusion": False, "edema": True}
    assert denied("free air") == {"free air": False}
    assert denied("mass not seen on the prior study") == {"mass": False}
    assert denied("no displaced fracture is seen there is an effusion") == {
        "fracture": True,
        "effusion": False,
    }


NAMES = sorted(term for terms in lexicon().terms.values() for term in terms)
CUES = ["no", "not", "without", "or", "but", "may be", "is", "cannot be excluded", "non-", ",", "."]
FILLING = st.lists(st.sampled_from(["mildly", "the", "4", "size"]), max_size=6).map(" ".join)
parted = st.tuples(st.sampled_from([name for name in NAMES if ".." in name]), FILLING)
of_terms = st.lists(
    st.one_of(
        st.sampled_from(CUES),
        st.sampled_from(NAMES),
        parted.map(lambda both: both[0].replace("..", both[1])),
    ),
    max_size=12,
).map(" ".join)


@functools.cache
def spacys() -> tuple[Language, Sequence[Negex], Matcher]:
    """Its blank English, negspacy's components, and a matcher of the terms with a gap."""
    nlp = spacy.blank("en")
    components, matcher = negation.negex(nlp), Matcher(nlp.vocab)
    for component in components:
        component.span_keys = {"terms"}
    may_stand = {"LOWER": {"NOT_IN": sorted(negation.NO_GAP)}, "IS_ALPHA": True, "OP": "?"}
    for kind, terms in lexicon().terms.items():
        for term, concept in ((t, c) for t, c in terms.items() if ".." in t):
            left, right = ([{"LOWER": w} for w in part.split()] for part in term.split(" .. "))
            matcher.add(f"{kind}/{concept}", [[*left, *[may_stand] * negation.GAP, *right]])
    return nlp, components, matcher


@settings(max_examples=150, deadline=None)
@given(st.one_of(texts, of_terms, st.sampled_from(REPORTS)))
@example("non- effusion")  # spaCy cuts "non" from "-" within a word alone
@example("a non- effusion")
@example("a non-effusion")
@example("a non - effusion")
def test_negation_is_negspacys(text: str) -> None:
    """Each term looked up in its own piece, against negspacy's component over the whole text."""
    nlp, components, _ = spacys()
    doc, statements = nlp.make_doc(text), parse(text)
    begins = {statement.start for statement in statements}
    for token in doc:
        token.is_sent_start = token.idx in begins
    terms = [term for statement in statements for term in statement.terms]
    spans: list[Any] = [doc.char_span(t.start, t.end, label=t.concept) for t in terms]
    doc.spans["terms"] = spans
    for component in components:
        component(doc)
    for term, span in zip(terms, spans, strict=True):
        assert term.suspected == span._.suspected
        words = {token.lower_ for token in span}
        is_within = len(span) > 2 and not words.isdisjoint({"not", "never"})
        is_non = re.search(r"(?<![^\W_])non- ?$", text[: term.start], re.IGNORECASE)
        assert term.denied == (span._.denied or is_within or bool(is_non))


@settings(max_examples=150, deadline=None)
@given(of_terms)
def test_a_gap_is_that_of_spacys_matcher(text: str) -> None:
    nlp, _, matcher = spacys()
    doc = nlp.make_doc(text)
    found = negation.parser().find.with_gap([token.lower_ for token in doc])
    due = {(nlp.vocab.strings[key], start, end) for key, start, end in matcher(doc)}
    assert {(f"{one.kind}/{one.concept}", one.start, one.end) for one in found} == due


def test_words_without_end_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new word is forgotten after its text once there are many; what is found stays the same."""
    fresh = negation.Parser(spacy.blank("en"))
    most = len(fresh._vocab) + 100
    texts = [f"no effusion of zq{i}q left nodule zr{i}r" for i in range(200)]
    due = list(map(negation.parser(), texts))
    monkeypatch.setattr(negation, "MOST_WORDS", most)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fresh, texts)) == due
    kept = [f"zq{i}q" in fresh._vocab.strings for i in range(200)]
    assert 0 < sum(kept) < 100 and not kept[-1]
    assert list(map(fresh, texts)) == due


def test_one_item_for_one_thing_said() -> None:
    """A general term and the finding that it holds, or the other way round, are the longer one."""
    for text, due in [
        ("no acute traumatic injury", "acute traumatic injury"),
        ("no other intra-abdominal injury", "intra-abdominal injury"),
        ("no active cardiopulmonary disease", "active cardiopulmonary disease"),
    ]:
        kinds = ("finding", "general")
        terms = [t for s in negation.parse(text) for t in s.terms if t.kind in kinds]
        assert [text[term.start : term.end] for term in terms] == [due] and terms[0].denied


def test_values_of_marks() -> None:
    def values(text: str, kind: str) -> list[set[str]]:
        return [set(mark.values) for mark in marks(text) if mark.kind == kind]

    assert values("bilateral", SIDE) == [{"left", "right"}]
    assert values("l4-l5", LEVEL) == values("L4/5", LEVEL) == [{"l4-l5"}]
    assert values("t6 and t8", LEVEL) == [{"t6", "t8"}]
    assert values("t2 weighted", LEVEL) == values("frontal view", LEVEL) == []
    assert values("2 x 3 cm", SIZE) == [{"length:20", "length:30"}]
    assert values("1 5 cm", SIZE) == [{"length:15", "length:50"}]


def test_the_lexicon_is_whole() -> None:
    found = lexicon()
    organs = set(found.terms["anatomy"].values())
    assert all(places <= organs for places in found.organs.values())
    assert len(set(found.terms[FINDING].values())) > 90
    assert "no change" in phrases("pseudo")
    with pytest.raises(KeyError):
        found.supports["no such finding"]


def test_reports_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claims.read.cache_clear()
    calls: list[str] = []

    def counted(text: str) -> list[Statement]:
        calls.append(text)
        return parse(text)

    monkeypatch.setattr(claims, "parse", counted)
    for impression in ("left effusion", "right effusion", "effusion"):
        findings("there is a left effusion", impression)
    assert calls.count("there is a left effusion") == 1


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    return [Report(r.prompt, r.impression, r.group, True) for r in generate(120, seed=5)]


@pytest.mark.parametrize("kind", CHECK_OF)
def test_an_injection_is_one_edit_that_is_found(kind: str, reports: list[Report]) -> None:
    cases = inject(kind, reports, 8, random.Random(0))
    assert cases
    assert cases == inject(kind, reports, 8, random.Random(0))
    caught = 0
    for case in cases:
        assert case.edited != case.clean
        assert 0 <= case.start < case.end <= len(case.edited)
        caught += bench.is_caught(case, findings(case.source, case.edited), [CHECK_OF[kind]])
    assert caught >= 0.75 * len(cases)


def test_real_reports_get_a_restated_clean_twin() -> None:
    report = Report("there is a right effusion the heart is normal in size", "", "", False)
    (case,) = inject("side flip", [report], 1, random.Random(0))
    assert "right" in case.clean and "left" in case.edited
    assert not any(findings(case.source, case.clean).values())
    assert restate("there is a 12 mm nodule", random.Random(1)) != ""


def test_the_bench_prints_tables_and_one_line_of_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["faithfulness", "--n", "40"])
    monkeypatch.setattr(bench, "generate", lambda n, seed: generate(150, seed))
    bench.main()
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert set(figures["errors"]) == {*CHECK_OF, "overall"}
    assert figures["errors"]["overall"]["own"]["n"] == 40
    assert set(figures["references"]) == set(CHECKS)


def test_the_bench_refuses_too_small_a_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["faithfulness", "--n", "3"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--n is 3" in capsys.readouterr().err
