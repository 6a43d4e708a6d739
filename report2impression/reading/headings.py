"""What a heading of a radiology report is called, and what it names: the words, by language.

    name_of("CLINICAL HISTORY", has_colon=True)   -> "history"
    name_of("Comparison film", has_colon=True)    -> "comparison"
    name_of("LUNGS", has_colon=True)              -> "unknown": a heading of unknown meaning
    name_of("The lungs", has_colon=True)          -> "": no heading

A further language is a further entry of WORDS: lower case, without accents and punctuation.
Misspelt words are found by likeness.
"""

import difflib
import re
import unicodedata
from functools import cache

NAMES = ("findings", "impression", "comparison", "technique", "history")
UNKNOWN = "unknown"
WORDS = {
    "en": {
        "findings": "findings, finding, observations, report findings, results, description",
        "impression": (
            "impression, conclusion, opinion, interpretation, summary, assessment, "
            "final impression, diagnostic impression, impression and recommendation, "
            "impression and plan, assessment and plan, final diagnosis, radiological diagnosis"
        ),
        "comparison": (
            "comparison, comparisons, comparison study, prior study, prior studies, prior exam, "
            "prior exams, prior examination, prior examinations, previous study, "
            "previous studies, previous exam, previous examination, compared to, compared with"
        ),
        "technique": (
            "technique, protocol, procedure, procedure and technique, scan technique, views, "
            "number of views"
        ),
        "history": (
            "history, clinical history, indication, clinical indication, clinical information, "
            "clinical data, clinical details, clinical question, clinical findings, "
            "reason for examination, reason for exam, reason for this examination, "
            "reason for study, reason for test, reason for visit, reason for referral, "
            "underlying medical condition, medical condition, patient information, "
            "presenting complaint, symptoms"
        ),
        "examination": "examination, exam, study, type of examination",
        "other": (
            "recommendation, recommendations, notification, addendum, wet read, attestation, "
            "note, comment, dose, radiation dose, contrast, medication, medications, allergies, "
            "anesthesia, complications, procedure done, fluoro time, plan, pertinent medications, "
            "current medications, meds, pmh, shx, fhx, shx fhx, ros, physical examination, "
            "physical exam, social history, family history, "
            "electronically signed by, signed by, dictated by, date, final report, "
            "preliminary report, discussion, communication"
        ),
    },
    "de": {
        "findings": (
            "befund, befunde, befundbeschreibung, befund und beurteilung, befund beurteilung, "
            "technik und befund, methodik und befund, untersuchungstechnik und befund"
        ),
        "impression": "beurteilung, zusammenfassende beurteilung, zusammenfassung, diagnose",
        "comparison": "vergleich, voruntersuchung, voruntersuchungen, voraufnahmen",
        "technique": "technik, methode, methodik, untersuchungstechnik",
        "history": (
            "klinik, anamnese, indikation, fragestellung, klinische angaben, "
            "klinische fragestellung, klinische informationen, rechtfertigende indikation, "
            "klinik fragestellung rechtfertigende indikation"
        ),
        "other": "empfehlung, procedere, prozedere, strahlenexposition, kontrastmittel",
    },
    "es": {
        "findings": "hallazgos, descripcion, informe, descripcion de hallazgos, resultados",
        "impression": (
            "impresion, impresion diagnostica, conclusiones, juicio diagnostico, diagnostico, "
            "impresion radiologica, diagnostico radiologico, valoracion"
        ),
        "comparison": "comparacion, estudios previos, estudio previo, exploraciones previas",
        "technique": "tecnica, protocolo, tecnica de exploracion",
        "history": (
            "antecedentes, indicacion, indicaciones, motivo, datos clinicos, informacion clinica, "
            "motivo de consulta, motivo del estudio, motivo de la exploracion, historia clinica"
        ),
        "other": "recomendaciones, recomendacion, contraste",
    },
    "fr": {
        "findings": (
            "resultat, resultats, constatations, description, compte rendu, analyse, observation"
        ),
        "impression": "synthese, au total, conclusion diagnostique, impression diagnostique",
        "comparison": "comparaison, comparaisons, examens anterieurs, examen anterieur",
        "technique": "technique d examen, protocole",
        "history": (
            "renseignements cliniques, antecedents, contexte, contexte clinique, "
            "indication clinique, motif, motif de l examen, informations cliniques"
        ),
        "other": "recommandation, recommandations, produit de contraste, dosimetrie",
    },
    "pt": {
        "findings": "achados, relatorio, descricao, analise, aspectos observados",
        "impression": (
            "impressao, impressao diagnostica, conclusao, conclusoes, hipotese diagnostica, opiniao"
        ),
        "comparison": "comparacao, exames anteriores, exame anterior",
        "technique": "tecnica, metodo, tecnica do exame, protocolo",
        "history": (
            "indicacao, indicacao clinica, dados clinicos, historia clinica, informacao clinica, "
            "informacoes clinicas, motivo do exame"
        ),
        "other": "recomendacoes, recomendacao, contraste",
    },
    "it": {
        "findings": "referto, reperti, reperto, descrizione, esito",
        "impression": (
            "conclusioni, conclusione, impressione diagnostica, giudizio diagnostico, diagnosi, "
            "impressioni, conclusioni diagnostiche"
        ),
        "comparison": "confronto, esami precedenti, precedenti, esame precedente",
        "technique": "tecnica, tecnica di esame, tecnica d esame, metodica, protocollo",
        "history": (
            "anamnesi, indicazione, indicazioni, quesito clinico, quesito diagnostico, "
            "notizie cliniche, dati clinici, motivo dell esame"
        ),
        "other": "raccomandazioni, mezzo di contrasto, nota",
    },
    "nl": {
        "findings": "bevindingen, bevinding, verslag, beschrijving, resultaten",
        "impression": "conclusie, beoordeling, samenvatting, indruk",
        "comparison": "vergelijking, vorig onderzoek, eerder onderzoek, ter vergelijking",
        "technique": "techniek, methode, onderzoekstechniek, protocol",
        "history": (
            "klinische gegevens, indicatie, vraagstelling, klinische vraagstelling, anamnese, "
            "voorgeschiedenis, klinische informatie, reden van onderzoek"
        ),
        "other": "advies, contrast, aanbeveling",
    },
}
# These may also sum up or interpret on the way: where another word says impression, that one does.
WEAK = frozenset(
    ("summary", "assessment", "interpretation", "discussion", "zusammenfassung", "samenvatting")
)
_NAME_OF = {
    word.strip(): name
    for language in WORDS.values()
    for name, words in language.items()
    for word in words.split(",")
}
# A heading of several words: one of HEADS, the others among PARTS ("Patient history").
_HEADS = {
    **dict.fromkeys(("findings",), "findings"),
    **dict.fromkeys(("impression", "impressions", "conclusion", "conclusions"), "impression"),
    **dict.fromkeys(("comparison", "comparisons"), "comparison"),
    **dict.fromkeys(("technique", "techniques"), "technique"),
    **dict.fromkeys(("history", "indication", "indications"), "history"),
}
_PARTS = (
    "patient patients s clinical medical relevant pertinent past brief surgical present provided "
    "oncologic reason for of the and or with without this to from exam exams examination "
    "examinations study studies test film films radiograph radiographs image images imaging view "
    "views scan scans date dates report reports ct cta mr mri mra us xr pet x ray chest abdomen "
    "head brain previous prior available general final overall main key significant additional "
    "diagnostic radiologic radiological radiographic radiology ultrasound mammographic comment "
    "comments plan recommendation recommendations summary diagnosis"
)
_ALLOWED = {*_PARTS.split(), *_HEADS}
# "CT FINDINGS", "COMPARISON OUTSIDE STUDIES", in capitals only, whatever the other words are.
_STARTS = ("findings", "impression", "comparison", "technique", "indication", "clinical history")
_LIKENESS = 0.84
_MAX_WORDS = 9


def plain(title: str) -> str:
    """The words of a title in lower case, without accents, punctuation and ordinals."""
    letters = unicodedata.normalize("NFKD", title).casefold()
    return " ".join(re.sub(r"[^a-z0-9]+", " ", re.sub("[\u0300-\u036f]", "", letters)).split())


def name_of(title: str, *, has_colon: bool, is_inner: bool = False) -> str:
    """The name of a heading, UNKNOWN for one of unknown meaning, "" for no heading.

    `has_colon`: a colon follows, else it stands alone on its line; `is_inner`: within a line.
    """
    words, is_upper = plain(title), title.isupper()
    if not words or words.count(" ") >= _MAX_WORDS:
        return ""
    name = _NAME_OF.get(words, "")
    if not has_colon:
        return name if name in NAMES and title[0].isupper() else ""
    if name := name or _composed(words, title) or _similar(words):
        return name
    if not is_upper:
        return ""
    for start in _STARTS:
        if words.startswith(start) or (start == "findings" and words.endswith(start)):
            return _NAME_OF[start]
    return "" if is_inner else UNKNOWN


def is_known(title: str) -> bool:
    """Whether it is a word of the table that names a section we look for."""
    return _NAME_OF.get(plain(title), "") in NAMES


def _composed(words: str, title: str) -> str:
    """The name of "Patient history", "Comparison film", "Technique and findings"."""
    parts = words.split()
    heads = [_HEADS[part] for part in parts if part in _HEADS]
    if not heads or not title[0].isupper() or not {*parts} <= _ALLOWED:
        return ""
    return "findings" if "findings" in heads and "impression" not in heads else heads[0]


@cache
def _similar(words: str) -> str:
    """The name for a misspelt heading."""
    known = [word for word in _NAME_OF if len(word) > 6]
    close = difflib.get_close_matches(words, known, n=1, cutoff=_LIKENESS)
    return _NAME_OF[close[0]] if close else ""
