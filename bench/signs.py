"""Which signs of radiology text does a tokenizer not know, and what becomes of them?

    python -m bench.signs --tokenizer T5_TOKENIZER_DIR

For each setting of data.normalise: what the model would read, and so write, of a few texts. The
last line is JSON.
"""

import json
import string
from dataclasses import dataclass

from report2impression.batching.signs import HALVES, IF_UNKNOWN, SPELLED, Signs, Spelling
from report2impression.batching.tokens import tokenise
from report2impression.decoding.generate import to_text
from report2impression.program.config import parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.weights.tokenizer import load_tokenizer

TEXTS = ("3×4 mm", "<4 mm", "−5 HU", "≥ 2 cm", "37 °C", "2–3 mm", "1½ cm", "5 µm", "2 ± 1", "10³")
SEEN = string.punctuation + "".join([*SPELLED, *IF_UNKNOWN, *HALVES, "éöäüßñøØ∞√²³"])


@dataclass(frozen=True)
class SignsConfig:
    """A tokenizer and the signs it lacks."""

    tokenizer: str = "google-t5/t5-small"
    """Folder or hub id of the tokenizer."""


@exits_cleanly
def main() -> None:
    config = parse(SignsConfig, description=(__doc__ or "").partition("\n")[0])
    tokenizer = load_tokenizer(config.tokenizer)
    signs, spelling = Signs(tokenizer), Spelling(tokenizer)
    lacking = [sign for sign in dict.fromkeys(SEEN) if not signs.known(sign)]
    rows = [[f"U+{ord(sign):04X}", sign, spelling(f"a{sign}b")[1:-1]] for sign in lacking]
    print_table(f"Signs that {config.tokenizer} lacks", ("code point", "sign", "ascii"), rows)

    def read(texts: list[str]) -> list[str]:
        tokens = tokenise(texts, tokenizer, max_tokens=50)
        return to_text(tokenizer, [tokens.row(i).tolist() for i in range(len(texts))])

    kept, spelled = read(list(TEXTS)), read([spelling(text) for text in TEXTS])
    stops = ["refused" if signs.unknown([text]) else "as it stands" for text in TEXTS]
    rows = [list(row) for row in zip(TEXTS, kept, spelled, stops, strict=True)]
    print_table("data.normalise", ("text", "keep", "ascii", "stop"), rows)
    print(
        json.dumps(
            {"lacking": [f"U+{ord(s):04X}" for s in lacking], "texts": rows}, ensure_ascii=False
        )
    )


if __name__ == "__main__":
    main()
