"""Songs for the page's players: copied to where the server may read them, in a format browsers play."""

from __future__ import annotations

from pathlib import Path

from gradio import processing_utils
from gradio.utils import get_upload_folder

from acestep.core.paths import content_hash
from acestep.ui.app import App

BROWSERS_PLAY = {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a"}


def playable(app: App, path: Path) -> str:
    """A copy of an audio file in the server's cache. The page cannot read files anywhere else.

    Raises UserError when the file is outside the allowed folders or cannot be decoded.
    """
    path = app.roots.resolve(path, "The song")
    cache = Path(get_upload_folder())
    if path.suffix.lower() in BROWSERS_PLAY:
        return processing_utils.save_file_to_cache(path, str(cache))
    from acestep.audio.decode import decode
    from acestep.audio.write import write_audio

    copy = cache / f"{content_hash(path)[:32]}.flac"
    if not copy.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_audio(copy, decode(path).samples)
    return str(copy)
