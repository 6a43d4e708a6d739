"""What `export` writes, used without us: on how many test reports it gives our decoder's tokens.

    python -m bench.exported --adapter RUN/adapter --data.path DIR [--n 1000]

Each side is a fresh process of that library alone, which is told a folder and texts: its own
tokenizer and its own search, as the folder's README shows them. The last line is JSON.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import cpu_name
from report2impression.decoding.ct2 import COMPUTE_TYPES
from report2impression.decoding.generate import generate
from report2impression.decoding.options import DecodingConfig
from report2impression.decoding.search import until
from report2impression.decoding.special import special_ids
from report2impression.extracting import export
from report2impression.extracting.options import ExportConfig
from report2impression.program.config import load, parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.runs.evaluation import EvalData
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.folders import find_trained
from report2impression.weights.trained import trained_model, trained_tokenizer

# Programs of a user's. The job is a JSON file; on standard output a list of token ids a text.
BEGIN = """
import json, sys
from transformers import AutoTokenizer
job = json.load(open(sys.argv[1]))
tokenizer = AutoTokenizer.from_pretrained(job["folder"])
cut = {"truncation": True, "max_length": job["longest"]}
order = sorted(range(len(job["texts"])), key=lambda i: len(job["texts"][i]))
found = [None] * len(order)
"""
END = """
assert not any(name.startswith("report2impression") for name in sys.modules)
print(json.dumps(found))
"""
TRANSFORMERS = f"""{BEGIN}
import torch
from transformers import T5ForConditionalGeneration
model = T5ForConditionalGeneration.from_pretrained(job["folder"], dtype=torch.float32).eval()
for start in range(0, len(order), 16):
    some = order[start : start + 16]
    texts = [job["texts"][i] for i in some]
    ids = model.generate(**tokenizer(texts, padding=True, return_tensors="pt", **cut))
    for i, row in zip(some, ids[:, 1:].tolist()):
        found[i] = row
{END}"""
CTRANSLATE2 = f"""{BEGIN}
import ctranslate2
translator = ctranslate2.Translator(job["folder"], compute_type=job["kind"])
for i in order:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(job["texts"][i], **cut).input_ids)
    (said,) = translator.translate_batch(
        [tokens], beam_size=1, min_decoding_length=0, max_decoding_length=job["max_new_tokens"]
    )
    found[i] = tokenizer.convert_tokens_to_ids(said.hypotheses[0])
{END}"""
TRIED = 64  # validation reports of the export itself
SIDES = {
    "merged, transformers": ("merged", "fp32", TRANSFORMERS),
    "ctranslate2, float32": ("ctranslate2", "fp32", CTRANSLATE2),
    "ctranslate2, int8": ("ctranslate2", "int8", CTRANSLATE2),
}


@dataclass(frozen=True)
class ExportedConfig:
    """Exports, each used by its own library alone."""

    adapter: str
    """What a run trained (RUN/adapter)."""
    n: int = 1000
    """Test reports; 0 or more than there are = all."""
    max_new_tokens: int = 128
    """Longest impression in tokens."""
    data: EvalData = field(default_factory=EvalData)


def job(folder: Path, texts: Sequence[str], longest: int, precision: str, n: int) -> str:
    """What a program is told, as JSON."""
    told = {"folder": str(folder), "texts": list(texts), "longest": longest}
    return json.dumps(told | {"kind": COMPUTE_TYPES[precision], "max_new_tokens": n})


def alone(program: str, told: str, file: Path) -> list[list[int]]:
    """The rows of a fresh Python, outside this folder."""
    file.write_text(told)
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        cwd=file.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@exits_cleanly
def main() -> None:
    config = parse(ExportedConfig, description=(__doc__ or "").partition("\n")[0])
    found = find_trained(config.adapter)
    trained = load(TrainConfig, found.recipe)
    tokenizer, model = trained_tokenizer(found, trained.model), trained_model(found, trained.model)
    settings = ExportConfig(
        adapter=config.adapter, to="merged", output="none", n=config.n, data=config.data
    )
    texts, source = export.reports_of("test", settings, trained, tokenizer)
    search = DecodingConfig(max_new_tokens=config.max_new_tokens)
    ours = [output.ids for output in generate(model, source, search, progress="our decoder")]
    special, longest = special_ids(model), trained.data.max_source_tokens
    same: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (to, precision, program)) in enumerate(SIDES.items()):
            folder = Path(place) / str(number)
            flags = [f"--adapter={config.adapter}", f"--to={to}", f"--precision={precision}"]
            flags += [f"--data.path={config.data.path or trained.data.path}"]
            flags += [f"--max_new_tokens={config.max_new_tokens}", f"--n={TRIED}"]
            export.main([*flags, f"--output={folder}"])
            told = job(folder, texts, longest, precision, config.max_new_tokens)
            rows = [until(row, special) for row in alone(program, told, Path(place) / "job.json")]
            same[name] = sum(a == b for a, b in zip(ours, rows, strict=True))
    rows_told = [(name, n, 100 * n / len(ours)) for name, n in same.items()]
    print_table(f"{len(ours):,} test reports", ("export", "our tokens", "%"), rows_told, digits=1)
    print(json.dumps({"cpu": cpu_name(), "n": len(ours), "same": same}))


if __name__ == "__main__":
    main()
