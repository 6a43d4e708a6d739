"""What an evaluation is asked for, as settings, and what it takes over from the run it looks at;
loads nothing heavy."""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeVar

from report2impression.decoding.options import DecodingConfig
from report2impression.program.errors import check_least
from report2impression.reading.options import DataConfig, PairSource
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.options import ModelConfig

Trained = TypeVar("Trained", DataConfig, ModelConfig)


@dataclass(frozen=True)
class BaseConfig:
    """The base under the adapter."""

    path: str | None = None
    """Folder or hub id of the base; none = the one trained on."""
    revision: str | None = None
    """Hub commit or tag of the base; none = as in training, with a path of your own: main."""


@dataclass(frozen=True)
class EvalData(PairSource):
    """Where the test reports are read from; what is not given is as in training."""

    path: str | None = None
    """Folder with the test split in any format of training, or a hub data set id; none = the one
    trained on."""
    revision: str | None = None
    """Hub commit or tag of the data set; none = as in training, with a path of your own: main."""
    on_bad_row: Literal["auto", "error", "skip"] | None = None
    """Empty, null or broken rows: stop, or skip and count; none = as in training."""
    allow_unknown: bool | None = None
    """Go on even if more than 5 % of a side's tokens are unknown; none = as in training."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DecodingConfig):
    """One comparison of a base with its adapter."""

    adapter: str
    """What a run trained (RUN/adapter, or RUN/model of full tuning), or a merged model."""
    n: int = 1000
    """Test reports to sample; 0 or more than there are = all."""
    seed: int = 0
    """Seed of the sample, of the bootstrap and of the random swaps."""
    stemmer: bool = True
    """Porter stemmer in ROUGE (rouge-score's use_stemmer)."""
    tokens: Literal["published", "unicode"] = "published"
    """Words of ROUGE: of a-z and digits only, as rouge-score has it, or of any script."""
    n_resamples: int = 10_000
    """Bootstrap resamples and random swaps behind intervals and p values."""
    show_text: int = 0
    """Print this many examples side by side: report, reference, base, LoRA (shows report text, and
    puts the cases' texts into report.html)."""
    save_predictions: bool = False
    """Also write predictions.jsonl (report text, readable by its owner only), which
    report2impression memorisation reads."""
    output_dir: str | None = None
    """Folder of scores.json, report.html and more; none = evaluation/ beside the adapter."""
    cpu: bool = False
    """Decode on the CPU even if a GPU is there."""
    dry_run: bool = False
    """Only show which reports would be read (counts and columns, no text)."""
    data: EvalData = field(default_factory=EvalData)
    model: BaseConfig = field(default_factory=BaseConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(0, self, "n", "seed", "show_text")
        check_least(100, self, "n_resamples")


def as_trained(given: EvalData | BaseConfig, trained: Trained) -> Trained:
    """The trained run's settings, but for what is given. A revision and further sources stay with
    their path."""
    values = {name: value for name, value in asdict(given).items() if value is not None}
    if values.get("path", trained.path) != trained.path:
        alone = {"revision": None, "mix": (), "weights": ()}
        values = {name: none for name, none in alone.items() if hasattr(trained, name)} | values
    return replace(trained, **values)


def sources_of(config: EvalConfig, trained: TrainConfig) -> tuple[DataConfig, ModelConfig]:
    """Where the reports and the base come from."""
    return as_trained(config.data, trained.data), as_trained(config.model, trained.model)
