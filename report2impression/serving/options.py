"""What a service is told; loads nothing heavy."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from report2impression.extracting.options import ExtractorConfig
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, check_least, exits_cleanly
from report2impression.runs.evaluation import BaseConfig
from report2impression.weights.folders import find_trained

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEAST_TOKEN = 16  # characters


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ExtractorConfig):
    """A service over one adapter."""

    adapter: str
    """What a run trained (RUN/adapter, or RUN/model), or a merged model."""
    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own needs token_file."""
    port: int = 8000
    """Port to listen on; 0 = any free one, which is told."""
    names: tuple[str, ...] = ()
    """Further names under which it may be asked for (Host header), such as ["ris.example:8000"]."""
    token_file: str | None = None
    """File with the token that every request must send; 16 characters or more."""
    queue: int = 256
    """Reports that may wait; more are refused (429)."""
    window_ms: float = 15.0
    """Milliseconds in which requests are gathered to be decoded together."""
    compare: bool = False
    """Load the adapter's base, too: the page shows what it writes beside the adapter's words."""
    cpu: bool = False
    """Decode on the CPU even if a GPU is there."""
    model: BaseConfig = field(default_factory=BaseConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, self, "queue")
        check_least(0, self, "port", "window_ms")
        if self.host not in LOOPBACK and self.token_file is None:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines: give a --token_file, or "
                "leave the host at 127.0.0.1"
            )

    def hosts(self, port: int) -> list[str]:
        """Host headers that are answered."""
        own = LOOPBACK if self.host in LOOPBACK else (self.host,)
        shown = [f"[{name}]" if ":" in name else name for name in own]
        return [f"{name}:{port}" for name in shown] + shown * (port == 80) + [*self.names]

    def token(self) -> str | None:
        """ConfigError: no such file, or too short a token."""
        if self.token_file is None:
            return None
        try:
            token = Path(self.token_file).expanduser().read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no plain text"
            raise ConfigError(f"--token_file {self.token_file} cannot be read: {reason}") from None
        if len(token) < LEAST_TOKEN or any(sign.isspace() for sign in token):
            raise ConfigError(
                f"--token_file {self.token_file}: one word of {LEAST_TOKEN} characters or more"
            )
        return token


@exits_cleanly
def serving_settings(argv: list[str] | None = None) -> ServeConfig:
    """SystemExit where they are wrong (2)."""
    config = parse(ServeConfig, argv, description="A page and a service over one adapter")
    config.token()
    find_trained(config.adapter)  # refused before torch is loaded
    if not find_spec("uvicorn"):
        raise ConfigError(
            'the service needs the extra "serve": pip install -c constraints.txt ".[serve]"'
        )
    return config
