"""Which words of an output are shared with the reference, which only the report supports, which
neither; and which words of the reference the output leaves out.

Words are compared in lower case without the punctuation around them. Aligned words (difflib) are
shared, and so are words that both have in another order. Little words, list numbers and
punctuation say nothing by themselves: they follow the words around them. A word in the report is
no proof that the sentence is right ("no" may be missing): this shows where to look.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

LITTLE = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "been", "by", "for", "from", "has", "have"),
        *("in", "is", "it", "its", "of", "on", "or", "that", "the", "there", "this", "to", "was"),
        *("were", "which", "with"),
    )
)
EDGES = re.compile(r"^[\W_]+|[\W_]+$")
LIST_NUMBER = re.compile(r"\d{1,2}[.)]")

Mark = tuple[int, int, str]  # [start, end) in characters, and what is wrong there


class Run(NamedTuple):
    """Words marked alike: kind is "", "source", "unsupported" or "omitted"; `tag` says more."""

    text: str
    kind: str = ""
    tag: str = ""


class Word(NamedTuple):
    """A word with the blanks after it, where it begins, and its form for comparison ("" if it
    says nothing by itself)."""

    text: str
    start: int
    form: str


def words(text: str) -> list[Word]:
    found = []
    for match in re.finditer(r"\S+\s*|\s+", text):
        bare = match[0].strip()
        form = "" if LIST_NUMBER.fullmatch(bare) else EDGES.sub("", bare).lower()
        found.append(Word(match[0], match.start(), "" if form in LITTLE else form))
    return found


def shared(first: Sequence[str], second: Sequence[str]) -> list[bool]:
    """Which words of `first` are also in `second`, each word there counted once: those in the same
    order, then those in another."""
    result = [False] * len(first)
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    left = Counter(second)
    for start, _, size in matcher.get_matching_blocks():
        for position in range(start, start + size):
            result[position] = True
            left[first[position]] -= 1
    for position, word in enumerate(first):
        if not result[position] and left[word] > 0:
            result[position] = True
            left[word] -= 1
    return result


def output_runs(output: str, reference: str, source: str, marks: Sequence[Mark] = ()) -> list[Run]:
    """The output in runs: "" shared, "source", or "unsupported" (by neither, or by a mark, whose
    name becomes the tag)."""
    own, known = words(output), {word.form for word in words(source)}
    said = [word for word in own if word.form]
    in_reference = shared([w.form for w in said], [w.form for w in words(reference) if w.form])
    kinds: dict[int, tuple[str, str]] = {}
    for word, found in zip(said, in_reference, strict=True):
        kind = "" if found else "source" if word.form in known else "unsupported"
        kinds[word.start] = (kind, "")
    for word in own:
        end = word.start + len(word.text.rstrip())
        names = [name for low, high, name in marks if low < end and word.start < high]
        if names:
            tags = [name for name in dict.fromkeys(names) if name != "unsupported"]
            kinds[word.start] = ("unsupported", ", ".join(tags))
    return _runs(own, kinds)


def omitted_runs(reference: str, output: str) -> list[Run]:
    """The reference in runs: "" for what the output also says, else "omitted"."""
    own = words(reference)
    said = [word for word in own if word.form]
    kept = shared([w.form for w in said], [w.form for w in words(output) if w.form])
    kinds = {w.start: ("" if k else "omitted", "") for w, k in zip(said, kept, strict=True)}
    return _runs(own, kinds)


def _runs(own: Sequence[Word], kinds: dict[int, tuple[str, str]]) -> list[Run]:
    """Neighbours of one kind together; the blanks between two runs belong to the unmarked one or
    stand alone, so that no mark ends in a blank."""
    found: list[tuple[str, str]] = []
    for position, word in enumerate(own):
        kind = kinds.get(word.start)
        if kind is None:  # says nothing by itself: marked only between two words marked alike
            before = found[-1] if found else ("", "")
            after = next((kinds[w.start] for w in own[position:] if w.start in kinds), ("", ""))
            kind = before if before == after else ("", "")
        found.append(kind)
    runs: list[Run] = []
    for kind, group in groupby(zip(found, own, strict=True), key=lambda item: item[0]):
        text = "".join(word.text for _, word in group)
        bare = text.rstrip() if kind[0] else text
        runs += [Run(bare, *kind), Run(text[len(bare) :])]
    return [run for run in runs if run.text]
