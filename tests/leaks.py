"""Canaries: invented names, numbers and words in the fields of report pairs, and a search for them
in whatever a program leaves behind, spelled in many ways.

    canaries = Canaries(tokenizer)
    found = canaries.found_in_tree(folder)        # (place, "prompt.name", "base64")

A spelling of a part is enough: of an encoded stream the piece in the middle, of token ids the ids
of one word.
"""

import base64
import gzip
import html
import io
import json
import random
import string
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow
import pyarrow.parquet

FIELDS = ("prompt", "impressions", "patient", "group", "extra", "bad")
KINDS = ("name", "mrn", "phone", "date", "words")
Tokeniser = Callable[[str], list[int]]  # without an end-of-sequence


class Leak(NamedTuple):
    place: str
    canary: str
    spelling: str


def canary(field: str, kind: str) -> str:
    """The same in every session, and in no text or file by chance."""
    draw = random.Random(f"{field} {kind}")
    digits = "".join(draw.choices(string.digits, k=12))
    letters = "".join(draw.choices("zqxjvkwy", k=9))
    return {
        "name": f"{letters[:4].capitalize()}ö{letters[4:]}",
        "mrn": digits,
        "phone": f"+{digits[:2]}-555-{digits[2:9]}",
        "date": f"{digits[:4]}-19-{digits[4:6]}T77:{digits[6:8]}",
        "words": f"{letters[:5]} {letters[5:]}ium",
    }[kind]


def canaries(field: str) -> str:
    """All of a field, as one text."""
    return " ".join(canary(field, kind) for kind in KINDS)


def spellings(text: str, tokenise: Tokeniser) -> dict[str, bytes]:
    """By name; those of BY_CASE are looked for as they are, all others in lower case."""
    data = text.encode()
    ids = tokenise(text)
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in text)
    forms: dict[str, bytes] = {
        "raw": data,
        "folded": text.casefold().encode(),
        "upper": text.upper().encode(),
        "json": json.dumps(text)[1:-1].encode(),
        "json, all signs": escaped.encode(),
        "ascii": ascii(text)[1:-1].encode(),
        "repr of bytes": repr(data)[2:-1].encode(),
        "url": quote(text, safe="").encode(),
        "url, all signs": "".join(f"%{byte:02x}" for byte in data).encode(),
        "html": html.escape(text).encode("ascii", "xmlcharrefreplace"),
        "html, all signs": "".join(f"&#{ord(sign)};" for sign in text).encode(),
        "html, hex": "".join(f"&#x{ord(sign):x};" for sign in text).encode(),
        "hex": data.hex().encode(),
        "utf-16-le": text.encode("utf-16-le"),
        "utf-16-be": text.encode("utf-16-be"),
        "utf-32-le": text.encode("utf-32-le"),
        "latin-1": text.encode("latin-1"),
        "int32 ids": np.array(ids, "<i4").tobytes(),
        "int64 ids": np.array(ids, "<i8").tobytes(),
        "list of ids": ", ".join(map(str, ids)).encode(),
        "list of ids, dense": ",".join(map(str, ids)).encode(),
    }
    for offset in range(3):
        whole = base64.b64encode(b"\0" * offset + data + b"\0" * (-(offset + len(data)) % 3))
        # The first signs hold bits of what stands before, the last ones of what follows.
        inner = whole[4 * (offset > 0) : len(whole) - 4]
        forms[f"base64 at {offset}"] = inner
        forms[f"base64 for urls at {offset}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    assert min(map(len, forms.values())) >= 8, text
    return forms


BY_CASE = ("base64", "int32", "int64", "utf-")


def layers(data: bytes) -> Iterator[bytes]:
    """The bytes, and what is packed in them."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from layers(gzip.decompress(data))
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from layers(archive.read(name))
    if data[:4] == b"PAR1":
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        yield json.dumps([table.schema.names, table.to_pylist()], ensure_ascii=False).encode()


class Canaries:
    """All canaries in all spellings, for one tokenizer."""

    def __init__(self, tokenise: Tokeniser) -> None:
        self.known = {
            f"{field}.{kind}": spellings(canary(field, kind), tokenise)
            for field in FIELDS
            for kind in KINDS
        }

    def found_in(self, data: bytes, place: str = "") -> set[Leak]:
        leaks = set()
        for layer in layers(data):
            lower = layer.lower()
            for name, forms in self.known.items():
                for spelling, form in forms.items():
                    exact = spelling.startswith(BY_CASE)
                    if form in layer if exact else form.lower() in lower:
                        leaks.add(Leak(place, name, spelling))
        return leaks

    def found_in_tree(self, root: Path) -> set[Leak]:
        """In every file below root, and in every name."""
        leaks: set[Leak] = set()
        for path in sorted(root.rglob("*")):
            place = str(path.relative_to(root))
            leaks |= self.found_in(place.encode("utf-8", "surrogateescape"), f"name of {place}")
            if path.is_file() and not path.is_symlink():
                leaks |= self.found_in(path.read_bytes(), place)
        return leaks
