"""What lies outside the allowed folders stays there, whatever is sent to the server; and who is answered at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pages import free_port

from acestep.core.errors import UserError
from acestep.ui.app import App
from acestep.ui.serving import AUTH_VARIABLE, ServeOptions, open_server
from lora_training_ui import build

SECRET = "the-secret-words"
PATIENCE_S = 60.0


@pytest.fixture
def secrets(app: App, tmp_path: Path, demo_songs: Path) -> Path:
    """Files outside the allowed folders that each way into the app would like to read, and a link to them inside."""
    folder = tmp_path / "outside"
    shutil.copytree(demo_songs, folder)
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.json").write_text(json.dumps({"caption": SECRET, "preview_captions": [SECRET]}))
    (folder / "secret.csv").write_text(f"file,caption\nNight Train.mp3,{SECRET}\n")
    (app.project / "link").symlink_to(folder)
    app.output.mkdir()
    (app.output / "link").symlink_to(folder)
    return folder


@pytest.fixture
def client(app: App) -> Iterator[httpx.Client]:
    blocks, _ = build(app)
    with httpx.Client(base_url=open_server(blocks, app, ServeOptions(port=free_port())), timeout=60) as client:
        yield client
    blocks.close()


def call(client: httpx.Client, name: str, values: list[Any]) -> str:
    """What the server says to a call of one of its handlers."""
    begun = client.post(f"/gradio_api/call{name}", json={"data": values})
    if begun.status_code != 200:
        return begun.text
    return client.get(f"/gradio_api/call{name}/{begun.json()['event_id']}").text


def ways_out(app: App, secrets: Path) -> list[str]:
    """Paths that lead to the secrets: a folder and a file, by ".." and by a link."""
    return [f"{app.project}/../outside", str(app.output / "link" / "secret.json")]


def test_no_handler_opens_a_path_outside(app: App, client: httpx.Client, secrets: Path) -> None:
    endpoints = client.get("/gradio_api/info").json()["named_endpoints"]
    texts = {"Textbox", "Dropdown", "Radio"}
    tried = 0
    for name, about in endpoints.items():
        asked = about["parameters"]
        if not any(parameter["component"] in texts for parameter in asked):
            continue
        for path in ways_out(app, secrets):
            values = [
                path if parameter["component"] in texts else parameter.get("parameter_default") for parameter in asked
            ]
            answer = call(client, name, values)
            assert SECRET not in answer, (name, path)
            assert app.background.wait(PATIENCE_S)
            tried += 1
    assert tried > 80
    assert str(secrets) not in app.workspace.model_dump_json()
    kept = [path for path in app.project.rglob("*") if path.is_file() and not path.is_relative_to(app.project / "link")]
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


def test_a_path_in_the_place_of_an_upload_is_refused(app: App, client: httpx.Client, secrets: Path) -> None:
    uploads, tried = {"File", "Uploadbutton", "Audio"}, 0
    for name, about in client.get("/gradio_api/info").json()["named_endpoints"].items():
        asked = about["parameters"]
        if not any(parameter["component"] in uploads for parameter in asked):
            continue
        tried += 1
        for path in ("secret.json", "secret.csv", "Night Train.mp3"):
            sent = {"path": str(secrets / path), "orig_name": path, "meta": {"_type": "gradio.FileData"}}
            linked = {**sent, "path": f"{app.output}/link/{path}"}
            for file in (sent, {**sent, "url": f"file://{sent['path']}"}, linked):
                values = [
                    ([file] if "list" in parameter["python_type"]["type"] else file)
                    if parameter["component"] in uploads
                    else parameter.get("parameter_default")
                    for parameter in asked
                ]
                assert SECRET not in call(client, name, values)
                assert app.background.wait(PATIENCE_S)
    assert tried >= 3 and app.dataset is None and not app.datasets.exists()
    assert SECRET not in app.workspace.model_dump_json()


def test_an_upload_stays_in_the_cache_whatever_it_is_called(app: App, client: httpx.Client) -> None:
    from gradio.utils import get_upload_folder

    for name in ("../../evil.txt", "..\\..\\evil.txt", "/etc/evil.txt", "a/../../evil.txt", ".."):
        answer = client.post("/gradio_api/upload", files={"files": (name, b"evil")})
        if answer.status_code == 200:
            stored = Path(answer.json()[0]).resolve()
            assert stored.is_relative_to(Path(get_upload_folder()).resolve()) and stored.read_bytes() == b"evil", name
        assert not list(app.project.parent.rglob("evil*")) and not Path("/etc/evil.txt").exists(), name


def test_the_folder_list_ends_at_the_allowed_folders(app: App, client: httpx.Client, secrets: Path) -> None:
    for typed in ("/", str(secrets), str(secrets.parent), f"{app.project}/..", str(app.project / "link")):
        answer = call(client, "/dataset_songs_browse", [typed])
        assert "outside the folders" in answer and "sketches" not in answer, typed
    for choice in ("..", "../outside", "link", "/etc", ".. (one folder up)"):
        answer = call(client, "/dataset_songs_enter", [str(app.project), choice])
        assert "sketches" not in answer and "passwd" not in answer, choice


def test_links_in_the_served_folder_do_not_lead_out(app: App, client: httpx.Client, secrets: Path) -> None:
    for path in (f"{app.output}/link/secret.txt", f"{app.output}/../../outside/secret.txt", f"{app.output}//link/../x"):
        assert SECRET not in client.get(f"/gradio_api/file={path}").text, path


def test_other_websites_are_refused(client: httpx.Client) -> None:
    assert client.get("/config").status_code == 200
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        for method, address in (("GET", "/config"), ("POST", "/gradio_api/call/frame_stop_work"), ("OPTIONS", "/")):
            assert client.request(method, address, headers=headers, content="{}").status_code == 403, headers
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert client.get("/config", headers=own).status_code == 200
    assert client.post("/gradio_api/call/frame_stop_work", headers=own, json={"data": []}).status_code == 200


def test_with_credentials_nothing_is_told_without_them(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    blocks, _ = build(app)
    with pytest.raises(UserError, match="without a password"):
        open_server(blocks, app, ServeOptions(host="0.0.0.0", port=free_port()))
    app.output.mkdir()
    (app.output / "preview.txt").write_text(SECRET)
    address = open_server(blocks, app, ServeOptions(port=free_port(), auth="ann:pass"))
    gets = ["config", "gradio_api/info", f"gradio_api/file={app.output}/preview.txt", "gradio_api/queue/data"]
    gets += ["gradio_api/call/frame_stop_work/x", "gradio_api/upload_progress?upload_id=x", "gradio_api/openapi.json"]
    posts = ["gradio_api/queue/join", "gradio_api/call/frame_stop_work", "gradio_api/run/frame_stop_work"]
    with httpx.Client(base_url=address, timeout=60) as client:
        for method, paths in (("GET", gets), ("POST", posts)):
            for path in paths:
                answer = client.request(method, f"/{path}", json={"data": []} if method == "POST" else None)
                assert answer.status_code == 401 and SECRET not in answer.text, path
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.txt", b"a")})
        assert uploaded.status_code == 401
        page = client.get("/").text
        assert "Prepare the demo" not in page and str(app.project) not in page
        assert client.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "ann", "password": "pass"}).status_code == 200
        assert client.get(f"/gradio_api/file={app.output}/preview.txt").text == SECRET
    blocks.close()
