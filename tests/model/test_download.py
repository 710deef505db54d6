"""Downloads from a hub on this machine: a real HTTP server that speaks as much of the protocol as is needed.

Each download runs in a process of its own, because huggingface_hub reads its address once, when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from acestep.core.errors import UserError
from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.download import plan_download

MAIN, BASE = "ACE-Step/Ace-Step1.5", "ACE-Step/acestep-v15-base"
LM_SMALL = "ACE-Step/acestep-5Hz-lm-0.6B"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The server's repositories and what was asked of it."""

    repos: dict[str, dict[str, bytes]]
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    damage: set[str] = field(default_factory=set)
    ignore_range: bool = False
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def ranges(self, repo: str, name: str) -> list[str]:
        """The Range headers with which a file was fetched."""
        wanted = f"/{repo}/resolve/{REVISION}/{name}"
        return [asked for method, path, asked in self.requests if method == "GET" and path == wanted]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range") or ""))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/[^/]+)?", path):
            self.repository(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[3], with_body)
        else:
            self.send(404, b"{}")

    def repository(self, repo: str) -> None:
        if repo in self.hub.refuse:
            status, code = self.hub.refuse[repo]
            self.send(status, b"{}", {"X-Error-Code": code} if code else {})
        elif repo not in self.hub.repos:
            self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            files = [self.sibling(name, data) for name, data in self.hub.repos[repo].items()]
            answer = {"id": repo, "sha": REVISION, "siblings": files, "tags": [], "private": False}
            self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        facts: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if name.endswith((".safetensors", ".pt")):
            facts["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return facts

    def file(self, repo: str, name: str, with_body: bool) -> None:
        data = self.hub.repos.get(repo, {}).get(name)
        if data is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if name in self.hub.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not self.hub.ignore_range:
            start = int(asked[1])
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send(206 if start else 200, data[start:] if with_body else b"", extra)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": REVISION, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the client stopped on purpose

    def log_message(self, *_arguments: Any) -> None:
        pass


def published_files(models: Path) -> dict[str, dict[str, bytes]]:
    """The demo model as the published repositories would hold it, with files that must stay where they are."""

    def folder(name: str, prefix: str = "") -> dict[str, bytes]:
        return {prefix + path.name: path.read_bytes() for path in (models / name).iterdir() if path.is_file()}

    dit = folder("acestep-v15-demo")
    trap = {"modeling_trap.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", ".gitattributes": b"*"}
    main = {"README.md": b"# hello", "config.json": b"{}"}
    main |= {f"acestep-v15-turbo/{name}": data for name, data in {**dit, **trap}.items()}
    main |= folder("vae", "vae/") | folder("Qwen3-Embedding-0.6B", "Qwen3-Embedding-0.6B/")
    main |= {"Qwen3-Embedding-0.6B/1_Pooling/config.json": b"{}"}
    return {MAIN: main, BASE: {**dit, **trap, "apg_guidance.py": b"raise SystemExit"}}


@pytest.fixture
def hub(demo_checkpoint: Path) -> Iterator[Hub]:
    hub = Hub(published_files(demo_checkpoint))
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from pathlib import Path
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.model.download import download
name, folder, stop_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
told = []
def listen(kind, what):
    if kind == "say":
        told.append(what)
    if kind == "progress":
        told.append([what.done, what.total])
        if stop_at and what.done >= stop_at:
            job.request_stop()
job = Job(listen)
try:
    result = str(download(name, folder, job))
except UserError as error:
    result = "error: " + str(error)
except Stopped:
    result = "stopped"
print(json.dumps({"result": result, "told": told}))
"""


def fetch(hub: Hub | str, folder: Path, name: str = "base", stop_at: int = 0, **environment: str) -> dict[str, Any]:
    address = hub if isinstance(hub, str) else hub.address
    home = str(folder.parent / "hf-home")
    variables = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": home, **environment}
    variables.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", SCRIPT, name, str(folder), str(stop_at)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_variant_arrives_with_what_it_shares_and_loads(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    answer = fetch(hub, folder)
    assert answer["result"] == str(folder / "acestep-v15-base")
    size, *progress = answer["told"]
    assert BASE in size
    assert "MB" in size
    done, total = progress[-1]
    assert done == total == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"acestep-v15-base/silence_latent.pt", "vae/config.json", "Qwen3-Embedding-0.6B/tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin", ".md", ".part")) or "1_Pooling" in name]
    assert resolve_checkpoint("base", [folder]).missing_parts() == []


def test_the_turbo_model_comes_out_of_the_main_repository(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert fetch(hub, folder, "turbo")["result"] == str(folder / "acestep-v15-turbo")
    assert resolve_checkpoint(folder / "acestep-v15-turbo").name == "acestep-v15-turbo"
    assert not [path for _, path, _ in hub.requests if BASE in path]


def test_a_second_time_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    fetch(hub, folder)
    hub.requests.clear()
    answer = fetch(hub, folder)
    assert answer["told"][0] == f"acestep-v15-base is complete in {folder}."
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_shared_parts_that_are_there_are_left_alone(hub: Hub, tmp_path: Path, demo_checkpoint: Path) -> None:
    import shutil

    folder = tmp_path / "models"
    shutil.copytree(demo_checkpoint / "vae", folder / "vae")
    (folder / "vae/config.json").write_text('{"mine": true}')
    fetch(hub, folder)
    assert (folder / "vae/config.json").read_text() == '{"mine": true}'


LARGE = 25_000_000  # the client reads blocks of 10 MB


def with_large_weights(hub: Hub) -> bytes:
    data = os.urandom(LARGE)
    hub.repos[BASE]["model.safetensors"] = data
    return data


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_stopped_download_goes_on_where_it_was(hub: Hub, tmp_path: Path, ignore_range: bool) -> None:
    data = with_large_weights(hub)
    folder = tmp_path / "models"
    assert fetch(hub, folder, stop_at=LARGE // 2)["result"] == "stopped"
    part = next((folder / "acestep-v15-base").glob("model.safetensors.*.part"))
    kept = part.stat().st_size
    assert 0 < kept < LARGE
    assert not (folder / "acestep-v15-base/model.safetensors").exists()
    hub.requests.clear()
    hub.ignore_range = ignore_range
    answer = fetch(hub, folder)
    assert "are there" in answer["told"][0]
    assert hub.ranges(BASE, "model.safetensors") == [f"bytes={kept}-"]
    assert (folder / "acestep-v15-base/model.safetensors").read_bytes() == data
    assert not list(folder.rglob("*.part"))
    done, total = answer["told"][-1]
    assert done == total


def test_parts_of_an_older_version_are_not_continued(hub: Hub, tmp_path: Path) -> None:
    with_large_weights(hub)
    folder = tmp_path / "models"
    fetch(hub, folder, stop_at=LARGE // 2)
    data = with_large_weights(hub)
    hub.requests.clear()
    fetch(hub, folder)
    assert hub.ranges(BASE, "model.safetensors") == [""]
    assert not list(folder.rglob("*.part"))
    assert (folder / "acestep-v15-base/model.safetensors").read_bytes() == data


def test_a_damaged_file_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.damage.add("model.safetensors")
    folder = tmp_path / "models"
    assert "model.safetensors of ACE-Step/acestep-v15-base arrived damaged" in fetch(hub, folder)["result"]
    assert not list((folder / "acestep-v15-base").glob("model.safetensors*"))
    hub.damage.clear()
    assert fetch(hub, folder)["result"] == str(folder / "acestep-v15-base")


def test_another_file_of_the_users_is_not_overwritten(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "acestep-v15-base").mkdir(parents=True)
    mine = folder / "acestep-v15-base/config.json"
    mine.write_text("{}")
    assert "differs from the published file" in fetch(hub, folder)["result"]
    assert mine.read_text() == "{}"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "accepted its terms"),
        (404, "RepoNotFound", "has no repository"),
        (503, "", "answered 503"),
        (418, "", "answered 418"),
    ],
)
def test_refusals_of_the_hub_are_sentences(hub: Hub, tmp_path: Path, status: int, code: str, words: str) -> None:
    hub.refuse[BASE] = (status, code)
    result = fetch(hub, tmp_path / "models")["result"]
    assert result.startswith("error: ")
    assert words in result
    assert BASE in result


def test_no_connection_and_offline_mode_are_sentences(hub: Hub, tmp_path: Path) -> None:
    assert "cannot be reached" in fetch("http://127.0.0.1:9", tmp_path / "models")["result"]
    assert "HF_HUB_OFFLINE" in fetch(hub, tmp_path / "models", HF_HUB_OFFLINE="1")["result"]


def test_a_repository_without_a_model_is_noticed(hub: Hub, tmp_path: Path) -> None:
    hub.repos[BASE] = {"README.md": b"moved"}
    assert "holds no model" in fetch(hub, tmp_path / "models")["result"]


def test_more_than_the_disk_holds_is_refused_before_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    original = Handler.sibling

    def enormous(handler: Handler, name: str, data: bytes) -> dict[str, Any]:
        facts = original(handler, name, data)
        return {**facts, "size": 10**15} if name == "model.safetensors" else facts

    Handler.sibling = enormous  # type: ignore[method-assign]
    try:
        assert "free; the download needs 1000000" in fetch(hub, tmp_path / "models")["result"]
    finally:
        Handler.sibling = original  # type: ignore[method-assign]
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_an_unknown_variant_suggests_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "turbo"'):
        plan_download("tubro", tmp_path)


LABELLER = "someone/captioner"
MODEL_SCRIPT = """
import sys
from acestep.captioning.local import model_folder
from acestep.core.errors import UserError
from acestep.core.jobs import Job
try:
    print(model_folder(sys.argv[1], Job(lambda kind, what: kind == "say" and print(what))))
except UserError as error:
    print("error:", error)
"""


def labelling_model(hub: Hub | str, home: Path, name: str = LABELLER, **environment: str) -> list[str]:
    address = hub if isinstance(hub, str) else hub.address
    variables = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), **environment}
    variables.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", MODEL_SCRIPT, name]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n")


def test_a_labelling_model_is_fetched_once_and_then_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    hub.repos[LABELLER] = {
        **hub.repos[BASE],
        "model.fp32-00001-of-00002.safetensors": b"the same weights in another form",
        "chat_template.json": b"{}",
    }
    told = labelling_model(hub, tmp_path)
    folder = tmp_path / "acestep-models/someone--captioner"
    assert "MB" in told[0]
    assert LABELLER in told[0]
    assert told[-1] == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "chat_template.json", "download.json"} <= names
    assert not [name for name in names if "fp32" in name or name.endswith((".py", ".bin"))]
    assert labelling_model("http://127.0.0.1:9", tmp_path) == [str(folder)]
    assert labelling_model(hub, tmp_path, HF_HUB_OFFLINE="1") == [str(folder)]
    assert labelling_model(hub, tmp_path, str(folder)) == [str(folder)]


def test_a_revision_of_a_labelling_model_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.repos[LABELLER] = hub.repos[BASE]
    assert labelling_model(hub, tmp_path, f"{LABELLER}@v2")[-1].endswith("someone--captioner@v2")
    assert [path for _, path, _ in hub.requests if path == f"/api/models/{LABELLER}/revision/v2"]


def test_without_the_hub_a_labelling_model_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    assert "cannot be reached" in labelling_model("http://127.0.0.1:9", tmp_path)[-1]
    assert "HF_HUB_OFFLINE" in labelling_model(hub, tmp_path, HF_HUB_OFFLINE="1")[-1]
    assert "has no repository" in labelling_model(hub, tmp_path)[-1]
    assert "no model folder" in labelling_model(hub, tmp_path, str(tmp_path / "nowhere"))[-1]
    assert not list(tmp_path.rglob("download.json"))


def test_what_another_program_fetched_is_used_if_it_is_whole(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub/models--someone--captioner"
    snapshot = cache / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(REVISION)
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    hub.repos[LABELLER] = hub.repos[BASE]
    assert "acestep-models" in labelling_model(hub, tmp_path)[-1], "that snapshot has no weights"
    (snapshot / "model.safetensors").write_bytes(b"")
    other = f"{LABELLER}@{REVISION}"
    assert labelling_model("http://127.0.0.1:9", tmp_path, other) == [str(snapshot)]


LANGUAGE_MODEL_SCRIPT = """
import sys
from pathlib import Path
from acestep.captioning.five_hz import language_model_folder
from acestep.core.jobs import Job
from acestep.model.checkpoints import open_checkpoint
print(language_model_folder(sys.argv[1], open_checkpoint(Path(sys.argv[2])), Job()))
"""


@pytest.mark.parametrize(("size", "repo", "prefix"), [("", MAIN, "acestep-5Hz-lm-1.7B/"), ("0.6B", LM_SMALL, "")])
def test_language_models_come_out_of_their_repositories(
    hub: Hub, tmp_path: Path, demo_checkpoint: Path, size: str, repo: str, prefix: str
) -> None:
    """To the side of the model they are to read codes of, wherever the program was started."""
    files = (path for path in (demo_checkpoint / "acestep-5Hz-lm-demo").iterdir() if path.is_file())
    model = tmp_path / "models" / "acestep-v15-demo"
    shutil.copytree(demo_checkpoint / "acestep-v15-demo", model)
    hub.repos.setdefault(repo, {}).update({prefix + path.name: path.read_bytes() for path in files})
    expected = tmp_path / "models" / f"acestep-5Hz-lm-{size or '1.7B'}"
    for address in (hub.address, "http://127.0.0.1:9"):  # the second time without the hub
        variables = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", LANGUAGE_MODEL_SCRIPT, size, str(model)]
        variables["PYTHONPATH"] = str(Path(__file__).parents[2])
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(expected)
    assert (expected / "model.safetensors").is_file()
    assert (expected / "tokenizer.json").is_file()
