"""Where one statement of a report ends and the next begins, if there is no punctuation to tell.

    "no effusion or pneumothorax | mild atelectasis | the heart is enlarged | lungs are clear"

Reports of the RadSum kind are lower-case words without a stop. A new statement is seen by how it
opens: "there is"; "no"; an article after a word that needs none; a subject with its verb ("lungs
are"); a grade after a complete finding ("mild"); the word after the last item of a denied list ("no
a b or c | ..."). A wrong cut costs little, a missed one lets "no" deny what it does not: when in
doubt, cut.
"""

import re
from collections.abc import Sequence

from report2impression.scoring.faithfulness.clinical_terms import words as words_of

JOINING, VERBS, NORMAL = words_of("joining"), words_of("verbs"), words_of("normal")
STATES = NORMAL | words_of("states")
PREDICATES = STATES | words_of("done")
GENERIC, HEADS, OPENERS = words_of("generic"), words_of("heads"), words_of("openers")
SUBJECT = OPENERS | words_of("of_subjects")
DENIALS = words_of("denying")
CONTINUES = JOINING | NORMAL | words_of("done") | GENERIC | HEADS | words_of("continuing")
SEEN = {"seen", "noted", "identified"}  # verbs that may end a statement or go on
DEMONSTRATED = words_of("done") - {"limits", "midline"}
ADJECTIVE = ("ic", "ous", "ed", "ar", "ive", "lucent")  # "no fibrotic changes" is not yet whole
BEFORE_NO = JOINING - SEEN  # "no" after them opens nothing
BEFORE_ARTICLE = BEFORE_NO - {"again", "otherwise"}
BEFORE_SUBJECT = BEFORE_NO - {"again"} | SUBJECT | {"cardio"}
OF_A_SUBJECT = SUBJECT | HEADS | {"and"}
WITHIN_A_LIST = {"no", "there", "the"} | VERBS | NORMAL
LEVEL = re.compile(r"[ctls]?\d{1,2}(?:-[ctls]?\d{1,2})?|[-/]|to")
LONGEST = 120  # words: what goes on without a stop is no statement
LOOK_AHEAD = 12  # words in which the "or" of a denied list must come


def starts(words: Sequence[str], findings: Sequence[int], organs: Sequence[int]) -> list[bool]:
    """For each of N lower-case words: does a statement begin here?

    `findings[i]` and `organs[i]` are the end (exclusive) of the term that begins at word i, or 0.
    """
    ends = {end for end in findings if end}
    organ_ends = {end for end in organs if end}
    inside = {j for i, end in enumerate(findings) if end for j in range(i + 1, end)}
    found = [False] * len(words)
    denial = None  # first word of the statement's denied list
    begun = 0
    for i, word in enumerate(words):
        if i == 0 or _is_stop(words, i - 1):
            begins = not (i and _is_level(words[begun : i - 1]) and words[i - 1] == ":")
        elif i in inside:
            continue
        else:
            begins = i - begun > LONGEST or (
                _opens(words, i, ends)
                or _is_subject(words, i, organs)
                or (_is_complete(words, i, ends, organ_ends) and _goes_on_anew(words, i, findings))
                or (denial is not None and _ends_denied_list(words, i, ends))
            )
            if begins and word == "there" and _only_says_where(words, begun, i):
                begins = False
            if begins and denial is not None and _lists_on(words, i, denial):
                begins = False
        if begins:
            found[i], denial, begun = True, None, i
        if word in DENIALS:
            denial = i
    for i, word in enumerate(words):  # "heart and lungs are": the cut belongs before the first
        if found[i] and word in VERBS:
            found[i] = False
    return found


def _is_level(words: Sequence[str]) -> bool:
    """ "l5-s1" of "l5-s1: disc bulge"."""
    return bool(words) and all(LEVEL.fullmatch(word) for word in words)


def _only_says_where(words: Sequence[str], start: int, i: int) -> bool:
    """ "at l4-l5, there is ..."."""
    return words[start] in {"at", "in", "on", "within"} and words[i - 1] == "," and i - start <= 8


def _is_stop(words: Sequence[str], i: int) -> bool:
    return words[i] in {".", ";", ":", "\n", "?", "!"}


def _opens(words: Sequence[str], i: int, ends: set[int]) -> bool:
    """ "there is", "no", "the" after a word that could end a statement."""
    word, before = words[i], words[i - 1]
    after = words[i + 1] if i + 1 < len(words) else ""
    if word == "there":
        return after in VERBS | {"'s", "may"} and before not in {"that", "which", "but"}
    if word == "no" or (word == "negative" and after == "for"):
        return before not in BEFORE_NO
    if word in {"the", "a", "an", "this", "these", "both"}:
        verb = before.endswith("ing") and i not in ends
        return before not in BEFORE_ARTICLE and not verb and after not in {"no", ""}
    return False


def _is_subject(words: Sequence[str], i: int, organs: Sequence[int]) -> bool:
    """An organ and its verb: "lungs are", "heart size normal", "left lung is"."""
    if words[i - 1] in BEFORE_SUBJECT or words[i] in HEADS or words[i] == "and":
        return False
    j = i
    while j < len(words) - 1 and j - i < 5:
        if organs[j]:
            j = organs[j]
        elif words[j] in OF_A_SUBJECT:
            j += 1
        else:
            break
    if j == i or not any(organs[k] for k in range(i, min(j, len(words)))) or j >= len(words):
        return False
    adverb = words[j] in {"otherwise", "grossly", "well", "mildly", "slightly"} and j + 1 < len(
        words
    )
    word = words[j + 1] if adverb else words[j]
    return word in VERBS | STATES or words[j : j + 2] == ["within", "normal"]


def _is_complete(words: Sequence[str], i: int, ends: set[int], organ_ends: set[int]) -> bool:
    """Could the words before i be a whole statement?"""
    before = words[i - 1]
    if i > 1 and before in DEMONSTRATED and words[i - 2] in DENIALS | {"previously"}:
        return False  # "the previously seen mass", "no demonstrated tear"
    if i in ends or before in GENERIC | {"bilaterally", "____"}:
        return True
    if before not in PREDICATES:
        return i in organ_ends and words[i] != "degenerative"
    if before not in STATES:
        return True
    earlier = words[i - 2] if i > 1 else ""
    states_it = earlier in VERBS | HEADS | {"not", "mildly", "grossly"}
    return states_it or (before in NORMAL and i - 1 in organ_ends | ends)


def _goes_on_anew(words: Sequence[str], i: int, findings: Sequence[int]) -> bool:
    """A grade or state, or a side with its finding, opens the next statement."""
    after = words[i + 1] if i + 1 < len(words) else "."
    if words[i] in NORMAL and after in {".", ",", ";"}:  # "effusion unchanged, new nodule"
        return False
    if words[i] in {"left", "right"}:
        near = range(i + 1, min(i + 5, len(words)))
        stop = next((k for k in near if words[k] in JOINING), len(words))
        return any(findings[k] for k in near if k < stop)
    if words[i - 1] in PREDICATES and words[i] not in CONTINUES | {"left", "right"}:
        return True
    return words[i] in OPENERS or words[i].endswith("scoliosis")


def _ends_denied_list(words: Sequence[str], i: int, ends: set[int]) -> bool:
    """After the finding or "disease" of a list that no "or" goes on with, a word that does not
    lead on."""
    last = i - 1 if words[i - 1] == "____" else i
    before = words[last - 1]
    return words[i] not in CONTINUES and (
        before in GENERIC or (last in ends and not before.endswith(ADJECTIVE))
    )


def _lists_on(words: Sequence[str], i: int, denial: int) -> bool:
    """Is the "or" of this list still to come: "no effusion large mass or pneumothorax"?"""
    if {"or", "nor"} & set(words[denial:i]):
        return False
    for k in range(i, min(i + LOOK_AHEAD, len(words))):
        if words[k] in WITHIN_A_LIST:
            return False
        if words[k] in {"or", "nor"}:
            return True
    return False
