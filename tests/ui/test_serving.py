"""Who may use a served app, what it serves, and that opening it loads no model library."""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import free_port

from acestep.core.errors import UserError
from acestep.ui.app import App
from acestep.ui.serving import AUTH_VARIABLE, ServeOptions, credentials, is_loopback, open_server
from lora_training_ui import build

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.3.2.1"])
def test_on_this_computer_no_password_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    assert is_loopback(host) and credentials(ServeOptions(host=host)) is None


@pytest.mark.parametrize(
    "options",
    [ServeOptions(host="0.0.0.0"), ServeOptions(host="::"), ServeOptions(share=True), ServeOptions(host="me")],
)
def test_for_others_credentials_are_demanded(options: ServeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    with pytest.raises(UserError, match="without a password"):
        credentials(options)
    monkeypatch.setenv(AUTH_VARIABLE, "ann:secret:with:colons")
    assert credentials(options) == ("ann", "secret:with:colons")


@pytest.mark.parametrize("auth", ["ann", "ann:", ":secret", ":"])
def test_half_credentials_are_refused_without_repeating_them(auth: str) -> None:
    with pytest.raises(UserError, match="USER:PASSWORD") as caught:
        credentials(ServeOptions(auth=auth))
    assert "secret" not in str(caught.value)


@pytest.fixture
def address(app: App) -> Iterator[str]:
    blocks, _ = build(app)
    yield open_server(blocks, app, ServeOptions(port=free_port()))
    blocks.close()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_the_output_folder_is_served(address: str, app: App) -> None:
    app.output.mkdir()
    (app.output / "preview.txt").write_text("a preview")
    secret = app.project / "secret.txt"
    secret.write_text("a secret")
    assert status(f"{address}gradio_api/file={app.output}/preview.txt") == 200
    for path in (secret, "/etc/passwd", f"{app.output}/../secret.txt", ROOT / "README.md", app.project / "x.json"):
        for written in (str(path), urllib.parse.quote(str(path), safe="")):
            assert status(f"{address}gradio_api/file={written}") in (403, 404), path


def test_a_taken_port_is_said(address: str, app: App) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    blocks, _ = build(app)
    with pytest.raises(UserError, match="Choose another --port"):
        open_server(blocks, app, ServeOptions(port=port))


def test_what_is_uploaded_lies_in_a_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import keep_uploads_private

    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    keep_uploads_private()
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert folder.parent == tmp_path / "state" and folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/chosen")
    keep_uploads_private()
    assert os.environ["GRADIO_TEMP_DIR"] == "/chosen"
