"""A training recipe as data: every setting of a run, and what follows from the settings alone.

The defaults are the published recipe; `recipes/*.toml` and flags change them (config.py).
"""

from dataclasses import dataclass, field
from typing import Literal

from report2impression.batching.plan import Plan, Planned, n_steps, plan_epoch
from report2impression.program.errors import ConfigError, check_least
from report2impression.reading.licence import Mark, inherited
from report2impression.reading.options import DataConfig
from report2impression.runs.trackers import RemoteTracker
from report2impression.weights.options import LoraSettings, ModelConfig, Quantization

Objective = Literal["extract", "denoise"]
Precision = Literal["auto", "fp16", "bf16", "fp32"]
OptimizerName = Literal["adamw", "adamw8bit", "adafactor"]


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the published recipe."""

    output_dir: str = "runs/published"
    """Run folder: config.toml, metrics.jsonl, curves.png, adapter/ (or model/)."""
    objective: Objective = "extract"
    """extract = findings -> impression; denoise = T5 span corruption of whole reports."""
    continued: float = 0.0
    """denoise only: share (0 to 1) of reports to be continued from a random place in their last
    half (prefix language modelling) instead of span-corrupted."""
    at_impression: float = 0.0
    """denoise only: share (0 to 1) of the continued reports that are cut where the impression
    begins, not at a random place."""
    tuning: Literal["lora", "full"] = "lora"
    """lora = adapter on a frozen base; full = all weights."""
    epochs: int = 5
    """Passes over the training pairs."""
    max_steps: int = 0
    """Stop after this many optimizer steps; 0 = all epochs."""
    micro_batch_size: int = 16
    """Reports per forward and process."""
    grad_accum_steps: int = 1
    """Micro-batches per optimizer step and process."""
    reports_per_step: int = 0
    """Reports per optimizer step, all processes together; accumulation follows from it.
    0 = micro_batch_size x grad_accum_steps x processes."""
    deterministic: bool = False
    """Add gradients in the plan's order: the same bits on 1, 2 or more processes (on a CPU)."""
    learning_rate: float = 5e-5
    """Peak of the linear schedule (step size of the optimizer)."""
    warmup_steps: int = 500
    """Applied updates over which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay (fraction of a weight per unit of learning rate)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm; 0 = never."""
    precision: Precision = "auto"
    """auto = fp16 on CUDA, bf16 on a CPU that multiplies it natively, else fp32."""
    engine: Literal["fast", "hf"] = "fast"
    """fast = padding-free, wherever it covers the model; hf = plain transformers + PEFT forward."""
    compile: bool = False
    """Compile the forward with torch.compile (worth its minutes on a GPU)."""
    cuda_graphs: bool = False
    """Launch forward and backward of a micro-batch at once, as CUDA graphs of at most 32 shapes;
    fast engine, one process. Not yet measured."""
    optimizer: OptimizerName = "adamw"
    """adamw = fused AdamW; adamw8bit = 8-bit states by bitsandbytes (extra "bnb"); adafactor = T5's
    own, steps relative to each weight's size: to pre-train, with a learning rate of 1e-2 or so."""
    base_quantization: Quantization = "none"
    """Store the frozen base in 8 or 4 (nf4) bits by bitsandbytes (extra "bnb"); engine hf."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward, for large bases; engine hf."""
    max_skips: int = 20
    """Stop at this many non-finite (skipped) optimizer steps in a row."""
    best_by: Literal["loss", "rougeL"] = "loss"
    """Keep the epoch with the lowest validation loss, or the highest ROUGE-L on generate_n."""
    patience: int = 0
    """Stop after this many epochs without a better one; 0 = never."""
    log_every: int = 10
    """Optimizer steps between two lines of metrics.jsonl."""
    generate_n: int = 0
    """Validation reports to generate and score after every epoch; 0 = none."""
    max_new_tokens: int = 128
    """Longest impression generated for generate_n, in tokens."""
    seed: int = 0
    """Seed of sample order, adapter start, dropout and span corruption."""
    checkpoint_steps: int = 0
    """Save the whole state every so many optimizer steps; 0 = only at the end of every epoch."""
    checkpoint_minutes: float = 10.0
    """Save it also when so many minutes have passed since the last time; 0 = never."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; the one of the best epoch is kept besides."""
    fresh: bool = False
    """Begin anew even if the run folder holds a run: removes its results and checkpoints."""
    allow_change: Literal["nothing", "data", "tokenizer", "base", "config", "all"] = "nothing"
    """What may differ from the run that a checkpoint is of, when going on with it."""
    peer_timeout: float = 600.0
    """Seconds after which processes that wait for another one give up."""
    store: Literal["fp32", "fp16"] = "fp32"
    """Precision of the weights that full tuning writes; an adapter is always fp32."""
    cpu: bool = False
    """Train on the CPU even if a GPU is there."""
    dry_run: bool = False
    """Only show which reports would be read (counts and columns, no text), and how much memory a
    step would need."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run folder (extra "trackers")."""
    track_with: RemoteTracker = "none"
    """Also tell the figures (never text) to wandb or mlflow, to be installed by you; refused for
    credentialed data where they would leave the machine."""
    allow_remote: bool = False
    """You confirm that figures of a run on credentialed data may leave the machine."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        check_least(1, self, "epochs", "micro_batch_size", "grad_accum_steps", "max_skips")
        check_least(1, self, "log_every", "max_new_tokens", "keep_checkpoints", "peer_timeout")
        check_least(0, self, "max_steps", "learning_rate", "warmup_steps", "weight_decay")
        check_least(0, self, "max_grad_norm", "patience", "generate_n", "seed", "reports_per_step")
        check_least(0, self, "checkpoint_steps", "checkpoint_minutes")
        if self.seed >= 2**63:  # torch's own limit
            raise ConfigError(f"seed must be below 2**63, not {self.seed}")
        for name in ("continued", "at_impression"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if self.continued and self.objective != "denoise":
            raise ConfigError(
                "continued is a share of denoised reports: it needs objective = denoise"
            )
        if self.at_impression and not self.continued:
            raise ConfigError("at_impression is a share of the continued reports: give continued")
        if self.generate_n and self.objective == "denoise":
            raise ConfigError("generate_n needs objective = extract: denoise generates nothing")
        if self.base_quantization != "none" and self.tuning == "full":
            raise ConfigError("base_quantization freezes the base: it needs tuning = lora")
        if self.best_by == "rougeL" and not self.generate_n:
            raise ConfigError("best_by = rougeL needs generate_n >= 1 and objective = extract")

    @property
    def is_published(self) -> bool:
        """Whether the published figures are those of such a run: its data and its base."""
        is_run = self.objective == "extract" and self.tuning == "lora"
        return is_run and is_published(self.data, self.model)

    @property
    def uses_bitsandbytes(self) -> bool:
        """An extra, and slow to load."""
        return self.optimizer == "adamw8bit" or self.base_quantization != "none"

    def mark(self) -> Mark:
        """Whether data or base are credentialed; the weights inherit it. Raises DataError."""
        return inherited(self.data.mark(), self.model.path)

    def global_batch_size(self, n_ranks: int) -> int:
        """Examples per optimizer step, all micro-batches and all ranks."""
        return self.reports_per_step or self.micro_batch_size * self.grad_accum_steps * n_ranks

    def n_micro_batches(self, n_ranks: int) -> int:
        """Micro-batches per optimizer step and rank: grad_accum_steps, unless reports_per_step
        decides."""
        return -(-self.global_batch_size(n_ranks) // (self.micro_batch_size * n_ranks))

    def check_processes(self, n_ranks: int) -> None:
        """Raises ConfigError if the steps cannot be cut for so many processes."""
        n_whole = -(-self.global_batch_size(n_ranks) // self.micro_batch_size)
        if self.deterministic and n_whole % n_ranks:
            raise ConfigError(
                f"deterministic: {n_whole} micro-batches of {self.micro_batch_size} in a step "
                f"cannot be dealt to {n_ranks} processes: run a number that divides {n_whole}"
            )

    def check_sharded(self) -> None:
        """Raises ConfigError if a base in parts (runs/sharding.py) cannot be trained so."""
        wanted = {
            "engine": ("hf",),
            "tuning": ("lora",),
            "base_quantization": ("none",),
            "optimizer": ("adamw",),
            "precision": ("bf16", "fp32"),
            "generate_n": (0,),
            "deterministic": (False,),
            "compile": (False,),
        }
        for name, values in wanted.items():
            if getattr(self, name) not in values:
                raise ConfigError(
                    f"the launch file asks for FSDP, which needs --{name} "
                    f"{' or '.join(str(value).lower() for value in values)}, not "
                    f"{str(getattr(self, name)).lower()}"
                )

    def total_steps(self, n_examples: int, n_ranks: int) -> int:
        """Optimizer steps of the whole run."""
        steps = self.epochs * n_steps(n_examples, self.global_batch_size(n_ranks))
        return min(steps, self.max_steps or steps)

    def plan(self, dataset: Planned, epoch: int, n_ranks: int) -> Plan:
        """The steps of one epoch, cut where the run ends."""
        steps = plan_epoch(
            dataset.source_lengths,
            dataset.target_lengths,
            global_batch_size=self.global_batch_size(n_ranks),
            n_ranks=n_ranks,
            grad_accum_steps=self.n_micro_batches(n_ranks),
            whole=self.deterministic,
            seed=self.seed,
            epoch=epoch,
        )
        left = self.total_steps(len(dataset), n_ranks) - epoch * len(steps)
        return steps[: max(0, left)]


def is_published(data: DataConfig, model: ModelConfig) -> bool:
    """Beside anybody's own data or base the published figures would be noise."""
    paths = data.path, model.path.removeprefix("google-t5/")
    return paths == ("hejazizo/mimic-iii", "t5-small") and not data.mix
