"""A stand-in for the Hugging Face hub: local folders behind the hub's file API on localhost.

It lets tests run the real loading code (`from_pretrained`, `load_dataset`, `snapshot_download`)
without the internet. The libraries read their settings when they are imported, so the code under
test runs in a subprocess:

    with HubStandIn(models={"google-t5/t5-small": folder}, datasets={}) as hub:
        subprocess.run([...], env=environment(hub.endpoint, tmp_path / "hf_home"), check=True)
    assert not hub.elsewhere

Files come over plain HTTP, without the hub's redirect to a CDN and without Xet. The environment
also names the stand-in as the proxy for all other hosts, so a request that would leave the machine
is refused at once and shows in `elsewhere`.
"""

import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

# /{id}/resolve/..., /datasets/{id}/resolve/..., /api/models/{id} and the calls below it.
# A "/" inside a revision arrives as %2F.
ROUTE = re.compile(
    r"(?:/api)?/(?:(?P<kind>models|datasets)/)?(?P<repo_id>[^/]+(?:/[^/]+)?)"
    r"(?:/(?P<call>resolve|revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
RANGE = re.compile(r"bytes=(\d+)-(\d*)")

# The hub keeps these in large file storage (LFS): their ETag is a SHA-256, not the git object id.
LFS_SUFFIXES = frozenset({".arrow", ".bin", ".model", ".parquet", ".safetensors"})

# Settings that a subprocess must not inherit: tokens, offline switches, caches, endpoints.
OWN_PREFIXES = ("HF_", "HUGGING", "TRANSFORMERS_")
PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy")


def environment(endpoint: str, hf_home: Path) -> dict[str, str]:
    """Return the environment of a subprocess that takes the stand-in at `endpoint` for the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIXES)}
    proxies = dict.fromkeys(PROXY_NAMES, endpoint) | {"no_proxy": "127.0.0.1,localhost"}
    return {
        **kept,
        **proxies,
        **{name.upper(): value for name, value in proxies.items()},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(hf_home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` counts each load with a request to S3
        "DISABLE_SAFETENSORS_CONVERSION": "1",  # else a repository without them goes to a bot
    }


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def json_reply(content: object) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(content).encode())


def refusal(error_code: str, status: int = 404) -> Reply:
    """An error as the hub states it: the client raises the exception that `error_code` names."""
    return Reply(status, {"X-Error-Code": error_code, "X-Error-Message": error_code}, b"")


@dataclass(frozen=True)
class HubFile:
    path: str
    content: bytes
    oid: str  # git object id
    sha256: str | None  # of a file in LFS

    @classmethod
    def read(cls, file: Path, root: Path) -> "HubFile":
        content = file.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        in_lfs = file.suffix in LFS_SUFFIXES
        sha256 = hashlib.sha256(content).hexdigest() if in_lfs else None
        return cls(file.relative_to(root).as_posix(), content, oid, sha256)

    def entry(self) -> dict[str, Any]:
        """The file as the hub's listings show it."""
        size = len(self.content)
        entry = {"type": "file", "path": self.path, "oid": self.oid, "size": size}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": 134}
        return entry

    def reply(self, byte_range: str | None) -> Reply:
        """The content, or the part of it that the Range header names."""
        size = len(self.content)
        headers = {"ETag": f'"{self.sha256 or self.oid}"'}
        if self.sha256:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(size)}
        part = RANGE.fullmatch(byte_range or "")
        if part is None:
            return Reply(200, headers, self.content)
        first, last = int(part[1]), min(int(part[2] or size), size - 1)
        if first > last:
            return Reply(416, {"Content-Range": f"bytes */{size}"}, b"")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Reply(206, headers, self.content[first : last + 1])


class Repo:
    """One repository at one commit: its folder is read once, because a commit never changes."""

    def __init__(self, folder: Path) -> None:
        files = [HubFile.read(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        if not files:
            raise FileNotFoundError(f"{folder}: no files to serve as a repository")
        self.files = {file.path: file for file in files}
        self.folders = {str(up) for path in self.files for up in PurePosixPath(path).parents}
        self.entries = [file.entry() for file in files] + [
            {"type": "directory", "path": path, "oid": "0" * 40}
            for path in sorted(self.folders - {"."})
        ]

    def info(self, repo_id: str, commit: str) -> Reply:
        siblings = [{"rfilename": path} for path in self.files]
        return json_reply({"id": repo_id, "sha": commit, "tags": [], "siblings": siblings})

    def tree(self, folder: str, *, recursive: bool) -> Reply:
        if folder not in self.folders:
            return refusal("EntryNotFound")
        depth = None if recursive else 1  # how many folders up from an entry `folder` may be
        ups = (list(PurePosixPath(entry["path"]).parents)[:depth] for entry in self.entries)
        listed = zip(self.entries, ups, strict=True)
        return json_reply([entry for entry, up in listed if PurePosixPath(folder) in up])

    def paths_info(self, paths: list[str]) -> Reply:
        return json_reply([entry for entry in self.entries if entry["path"] in paths])

    def file(self, path: str, byte_range: str | None) -> Reply:
        file = self.files.get(path)
        return file.reply(byte_range) if file else refusal("EntryNotFound")


class HubStandIn:
    """The hub on a free port of localhost, in a daemon thread, while the `with` block lasts.

    `requests` holds "METHOD target" of every request, the target as the client sent it: with its
    query, and a whole URL where another host was meant. `commit` is what revision `main` stands
    for in all repositories; it follows from their content.
    """

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path]) -> None:
        self.repos = {("models", repo_id): Repo(folder) for repo_id, folder in models.items()}
        self.repos |= {("datasets", repo_id): Repo(folder) for repo_id, folder in datasets.items()}
        content = json.dumps([(*name, repo.entries) for name, repo in self.repos.items()])
        self.commit = hashlib.sha1(content.encode()).hexdigest()
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubStandIn":
        # The poll interval is how long __exit__ waits for the loop to notice.
        loop = partial(self._server.serve_forever, poll_interval=0.02)
        threading.Thread(target=loop, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """From now on nothing listens there; a second time changes nothing."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def elsewhere(self) -> list[str]:
        """The requests that meant another host.

        Not counted is the dataset viewer ("datasets-server." before the endpoint's host), which
        `datasets` asks about a dataset at revision None or main and does without.
        """
        viewer = self.endpoint.replace("://", "://datasets-server.") + "/"
        return [r for r in self.requests if not r.split(" ", 1)[1].startswith(("/", viewer))]

    def answer(self, target: str, byte_range: str | None, form: str) -> Reply:
        """The reply to a request for `target`, with its Range header and its body `form`."""
        if not target.startswith("/"):
            return refusal("OtherHost", status=403)
        url = urlsplit(target)
        route = ROUTE.fullmatch(url.path)
        if route is None:
            return refusal("EntryNotFound")
        repo_id, call, path = route["repo_id"], route["call"], unquote(route["path"] or "")
        repo = self.repos.get((route["kind"] or "models", repo_id))
        if repo is None:
            return refusal("RepoNotFound")
        if unquote(route["revision"] or "main") not in ("main", self.commit):
            return refusal("RevisionNotFound")
        if call == "resolve":
            reply = repo.file(path, byte_range)
        elif call == "tree":
            recursive = parse_qs(url.query).get("recursive", [""])[0].lower() in ("true", "1")
            reply = repo.tree(path or ".", recursive=recursive)
        elif call == "paths-info":
            reply = repo.paths_info(parse_qs(form).get("paths", []))
        else:
            reply = repo.info(repo_id, self.commit)
        # Also on a missing file: clients remember per commit what does not exist.
        return reply._replace(headers=reply.headers | {"X-Repo-Commit": self.commit})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # clients keep their connections open
    disable_nagle_algorithm = True  # else a body waits for the client's delayed ACK, 40 ms

    def __init__(self, hub: HubStandIn, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def respond(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        reply = self.hub.answer(self.path, self.headers.get("Range"), form)
        self.send_response(reply.status)
        for name, value in (reply.headers | {"Content-Length": str(len(reply.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_CONNECT = respond

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: `HubStandIn.requests` is the log."""
