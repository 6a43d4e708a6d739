"""Radiology reports in, structured impressions out.

    python extract.py --adapter RUN/adapter --input reports/ --output out.jsonl
    python extract.py --adapter RUN/adapter --input in.jsonl --format fhir --output out/
    python extract.py --adapter RUN/adapter < report.txt                 one report, its impression
    python extract.py --structure_only --input impressions.jsonl --output items.jsonl    no model
    accelerate launch extract.py ...                                     on several processes

The work is done by report2impression/extracting: `extractor` (also a class to import), `items`,
`fhir`, `extraction` (blocks, resuming, shards). Results hold report text.
"""

from report2impression.extracting.settings import extract_settings
from report2impression.program.errors import exits_cleanly
from report2impression.program.process import load_quickly

if __name__ == "__main__":
    extract_settings()  # --help and mistakes are answered before torch is loaded
    load_quickly()

from report2impression.extracting.extraction import run


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    run(*extract_settings(argv))


if __name__ == "__main__":
    main()
