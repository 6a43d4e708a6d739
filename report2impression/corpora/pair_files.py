"""Where the pairs of NOTEEVENTS go: split, written, and never half there under the final name.

`PublishedSplit` keeps the pairs of each group on disk (8 bytes a pair in memory) until the last is
known, then shuffles them as the published builder did and writes its .tok files. `PatientSplit`
knows at once where a pair belongs: a hash of the patient decides, so that further notes move
nobody; in memory it holds about 100 bytes a pair, to know the duplicates.
"""

import contextlib
import hashlib
import json
import shutil
from array import array
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import IO, Literal

from report2impression.corpora.radsum23 import Style, restyle, tables
from report2impression.reading.pairs import SPLITS, Pair, json_line

TOK_NAMES = {"train": "train", "validation": "validate", "test": "test"}
TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1  # the rest is for testing
DUPLICATE = "duplicate of an earlier pair"
LAST_LINE = "empty impression at the end of its group"
NOT_A_TEST_PATIENT = "test-only group, but the patient is not in the test split"

UnseenGroups = Literal["test", "split"]


@dataclass(frozen=True)
class TokFile:
    """A file as written and its MD5 sum, beside that of the published one."""

    file: str
    group: str
    md5: str
    published_md5: str


class _JsonFiles:
    """{train,validation,test}.jsonl of a folder, and how many pairs went where."""

    def __init__(self, folder: Path) -> None:
        self._files = {split: (folder / f"{split}.jsonl").open("wb") for split in SPLITS}
        self.counts: Counter[tuple[str, str]] = Counter()  # (group, split) -> pairs

    def write(self, split: str, pair: Pair) -> None:
        self._files[split].write(json_line(pair).encode())
        self.counts[pair.group, split] += 1

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class PublishedSplit:
    """RadSum23's: each group shuffled with one stream of seed 42, 80/10/10; five are test only.

    `add` takes the pairs in the order of the notes, or says why not; `finish` writes the rest, but
    for the last pairs of `lost`: the builder writes the impressions of a group line by line and
    reads them back before the shuffle, and an empty last line is not read.
    """

    def __init__(self, folder: Path, style: Style) -> None:
        self._folder, self._style = folder, style
        self._waiting = folder / ".waiting"
        self._waiting.mkdir()
        self._kept: dict[str, IO[bytes]] = {
            group: (self._waiting / group).open("w+b") for group in tables().groups
        }
        self._offsets = {group: array("q") for group in tables().groups}
        self._is_last_empty: dict[str, bool] = {}
        self._json = _JsonFiles(folder)
        self.counts = self._json.counts

    @property
    def lost(self) -> list[str]:
        """The groups whose last pair is in no file."""
        return [group for group in tables().split_groups if self._is_last_empty.get(group)]

    def add(self, pair: Pair) -> str:
        self._is_last_empty[pair.group] = not pair.impression
        file = self._kept[pair.group]
        self._offsets[pair.group].append(file.tell())
        file.write(json_line(pair).encode())
        return ""

    def finish(self) -> list[TokFile]:
        rng, files = Random(42), []  # the stream of random.seed(42)
        for group in (*tables().split_groups, *tables().test_groups):
            (self._folder / group).mkdir()
            n_pairs = len(self._offsets[group]) - (group in self.lost)
            order, parts = list(range(n_pairs)), {"test": slice(0, n_pairs)}
            if group in tables().split_groups:
                rng.shuffle(order)  # its draws depend on the length alone
                first = int(TRAIN_SHARE * n_pairs)
                second = first + int(VALIDATION_SHARE * n_pairs)
                bounds = (0, first, second, n_pairs)
                parts = {s: slice(*bounds[i : i + 2]) for i, s in enumerate(SPLITS)}
            for split, part in parts.items():
                files += self._write(group, split, order[part])
        self._json.close()
        for file in self._kept.values():
            file.close()
        shutil.rmtree(self._waiting)
        return files

    def _write(self, group: str, split: str, order: list[int]) -> list[TokFile]:
        """Both .tok files and the JSON lines of one group in one split."""
        kept, offsets, separator = self._kept[group], self._offsets[group], b""
        names = [f"{TOK_NAMES[split]}.{side}.tok" for side in ("findings", "impression")]
        sums = [hashlib.md5(usedforsecurity=False) for _ in names]
        with contextlib.ExitStack() as stack:
            toks = [stack.enter_context((self._folder / group / n).open("wb")) for n in names]
            for number in order:
                kept.seek(offsets[number])
                row = json.loads(kept.readline())
                texts = row["prompt"], row["impressions"]
                pair = Pair(row["id"], *texts, group, row.get("patient", ""))
                for text, tok, md5 in zip(texts, toks, sums, strict=True):
                    line = separator + text.strip().encode()
                    tok.write(line)
                    md5.update(line)
                separator = b"\n"  # between the lines only
                prompt, impression = (restyle(text, self._style) for text in texts)
                self._json.write(split, replace(pair, prompt=prompt, impression=impression))
        published = tables().md5
        keys = [f"{group}_{name.removesuffix('.tok').replace('.', '_')}" for name in names]
        return [
            TokFile(f"{group}/{name}", group, md5.hexdigest(), published[key])
            for name, key, md5 in zip(names, keys, sums, strict=True)
        ]


class PatientSplit:
    """By patient: `add` writes each new pair to the split of its patient, or says why not.

    The groups that the published split keeps for testing stay unseen in training: of their pairs
    those of test patients count ("test"), or they are split like all others ("split").
    """

    def __init__(
        self, folder: Path, unseen_groups: UnseenGroups, plausible_only: bool = False
    ) -> None:
        self._plausible_only = plausible_only
        self._test_only = tables().test_groups if unseen_groups == "test" else ()
        self._json = _JsonFiles(folder)
        self._seen: set[bytes] = set()
        self.counts = self._json.counts
        self.lost: list[str] = []

    def add(self, pair: Pair) -> str:
        if self._plausible_only and (reason := _implausible(pair)):
            return reason
        split = split_of(pair.patient)
        if pair.group in self._test_only and split != "test":
            return NOT_A_TEST_PATIENT
        texts = f"{pair.prompt}\n{pair.impression}".encode()  # the texts hold no newline
        digest = hashlib.blake2b(texts, digest_size=16).digest()
        if digest in self._seen:
            return DUPLICATE
        self._seen.add(digest)
        self._json.write(split, pair)
        return ""

    def finish(self) -> list[TokFile]:
        self._json.close()
        return []


def split_of(patient: str) -> str:
    """The split of a patient: 80/10/10 by a hash of the id, so it depends on nothing else."""
    digest = hashlib.sha256(patient.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < TRAIN_SHARE:
        return "train"
    return "validation" if place < TRAIN_SHARE + VALIDATION_SHARE else "test"


def _implausible(pair: Pair) -> str:
    """The filters of Trienes et al. (INLG 2023) on findings and impression, counted in words."""
    n_findings, n_impression = len(pair.prompt.split()), len(pair.impression.split())
    if n_findings < 10:
        return "implausible: findings under 10 words"
    if n_impression < 2:
        return "implausible: impression under 2 words"
    return "implausible: findings not longer" if n_findings <= n_impression else ""
