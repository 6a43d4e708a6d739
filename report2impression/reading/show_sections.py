"""Show how reports are cut into sections (names and sizes, no text unless asked).

python -m report2impression sections --input report.txt   # a folder of .txt, or - for stdin
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, DataError, exits_cleanly
from report2impression.reading.hl7 import from_hl7
from report2impression.reading.report_files import report_files
from report2impression.reading.sections import find_sections


@dataclass(frozen=True)
class SectionsConfig:
    """The sections of reports as JSON lines."""

    input: str
    """A text file, a folder of .txt files, or - for standard input."""
    text: bool = False
    """Also the headings and the texts, not only names and offsets."""


def read_reports(source: str) -> Iterator[tuple[str, str]]:
    """(file name, report) of a file, a folder of .txt files, or standard input ("-"); of an HL7
    message its text."""
    path = Path(source).expanduser()
    files = list(report_files(path)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .txt file in this folder")
    for file in files:
        try:
            data = sys.stdin.buffer.read() if source == "-" else file.read_bytes()
            yield _name(file, path), from_hl7(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise DataError(f"{file} is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise ConfigError(f"--input {file} cannot be read: {error.strerror}") from None


def _name(file: Path, source: Path) -> str:
    return file.name if file == source else file.relative_to(source).as_posix()


@exits_cleanly
def main() -> None:
    config = parse(SectionsConfig, description=(__doc__ or "").partition("\n")[0])
    for file, report in read_reports(config.input):
        for section in find_sections(report):
            row = {"file": file, "name": section.name, "start": section.start, "end": section.end}
            if section.instead:
                row["instead"] = True
            if config.text:
                row["heading"] = report[section.heading_start : section.heading_end]
                row["text"] = report[section.start : section.end]
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
