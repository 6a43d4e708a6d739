"""Put an adapter on the Hugging Face hub: weights, their configuration and the model card only.

    report2impression push --adapter RUN/adapter --repo_id OWNER/NAME [--dry_run]

Private unless told otherwise. Refused for adapters of credentialed data, and where LICENCE.json is
missing, so that nobody knows: a hub is not where such weights may be shared.
"""

from dataclasses import dataclass
from pathlib import Path

from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.reading.licence import FILE, Mark, read_mark

NEEDED = ("adapter_model.safetensors", "adapter_config.json", "README.md")
FILES = (*NEEDED, FILE)


@dataclass(frozen=True)
class PushConfig:
    """One upload."""

    adapter: str
    """Adapter folder of a run (RUN/adapter)."""
    repo_id: str
    """OWNER/NAME on the hub; made if it is not there."""
    private: bool = True
    """Only for its owner to see; a repository that is there and public is then refused."""
    allow_credentialed: bool = False
    """You confirm that your data use agreement lets these weights be put there."""
    allow_unknown: bool = False
    """You confirm the same for an adapter without LICENCE.json."""
    dry_run: bool = False
    """List what would go, and ask the hub nothing."""


def check_mark(folder: Path, mark: Mark | None, config: PushConfig) -> None:
    """Raises ConfigError unless the adapter may go, or the user says so."""
    if mark is None and not config.allow_unknown:
        raise ConfigError(
            f"{folder} holds no {FILE}, so what it was trained on is unknown: --allow_unknown if "
            "you know that its data may be shared"
        )
    if mark and mark.credentialed and not config.allow_credentialed:
        raise ConfigError(
            f"{folder} was trained on credentialed data ({mark.source}; {mark.licence}): weights "
            "may hold parts of the notes and may only be shared under the same agreement (on "
            "PhysioNet, not on a hub); --allow_credentialed if your agreement lets you"
        )


def files_to_push(folder: Path) -> list[str]:
    """Names on the allow-list that are there. Raises ConfigError if one is missing or a link."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no {name}: give the adapter folder of a run")
    there = [name for name in FILES if (folder / name).is_file()]
    for name in there:
        if (folder / name).is_symlink():
            raise ConfigError(f"{folder / name} is a link: put the file itself there")
    return there


def upload(folder: Path, names: list[str], config: PushConfig) -> str:
    """Send the files in one commit and return its address. Raises ConfigError."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(config.repo_id, private=config.private, exist_ok=True)
        if config.private and not api.repo_info(config.repo_id).private:
            raise ConfigError(
                f"{config.repo_id} is there and public: make it private, name another, or give "
                "--private false"
            )
        done = api.upload_folder(
            repo_id=config.repo_id,
            folder_path=folder,
            allow_patterns=names,
            commit_message="Adapter of report2impression",
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise ConfigError(
            f"the hub refused {config.repo_id} ({type(error).__name__}): check --repo_id and your "
            "login (hf auth login)"
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise ConfigError(
            f"no hub can be reached ({type(error).__name__}); nothing is known to have arrived"
        ) from None
    return str(done.commit_url)


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse(PushConfig, argv, description=(__doc__ or "").partition("\n")[0])
    folder = Path(config.adapter).expanduser()
    names = files_to_push(folder)
    check_mark(folder, read_mark(folder), config)
    if config.dry_run:
        whom = "privately" if config.private else "PUBLICLY"
        print(f"would go to {config.repo_id}, {whom}:")
        for name in names:
            print(f"  {name} ({(folder / name).stat().st_size:,} bytes)")
        return
    print(f"pushed: {upload(folder, names, config)}")


if __name__ == "__main__":
    main()
