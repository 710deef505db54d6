"""Starting an app's server: who may reach it, what it may serve, and an end that keeps the work under way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr
from starlette.middleware import Middleware

from acestep.core.errors import UserError
from acestep.core.together import when_the_starter_ends
from acestep.ui.app import App
from acestep.ui.guard import SameSite, is_loopback
from acestep.ui.style import CSS, theme

AUTH_VARIABLE = "ACESTEP_AUTH"
LARGEST_UPLOAD = "4gb"
STOP_WAIT_S = 120.0
"""How long an ending server waits for its work to save what it has."""


@dataclass(frozen=True)
class ServeOptions:
    """Where the server listens and who may use it. `auth` is USER:PASSWORD."""

    host: str = "127.0.0.1"
    port: int = 7861
    share: bool = False
    auth: str = ""
    open_browser: bool = False


def credentials(options: ServeOptions) -> tuple[str, str] | None:
    """User and password, from the options or the environment; a server others can reach must have them."""
    given = options.auth or os.environ.get(AUTH_VARIABLE, "")
    user, colon, password = given.partition(":")
    if given and not (user and colon and password):
        raise UserError("The credentials are not of the form USER:PASSWORD.", fix=f"Correct --auth or {AUTH_VARIABLE}.")
    if not given and (options.share or not is_loopback(options.host)):
        where = "--share" if options.share else f"--host {options.host}"
        raise UserError(
            f"With {where} others could use this computer's files and graphics card without a password.",
            fix=f"Add --auth USER:PASSWORD, or set {AUTH_VARIABLE}=USER:PASSWORD in the environment.",
        )
    return (user, password) if given else None


def open_server(blocks: gr.Blocks, app: App, options: ServeOptions) -> str:
    """Start the server in the background and return its address. Raises UserError when the port is taken."""
    user = credentials(options)
    app.public = options.share or not is_loopback(options.host)
    blocks.queue(default_concurrency_limit=8)
    try:
        _, address, _ = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            auth=user,
            inbrowser=options.open_browser,
            allowed_paths=[str(app.output)],
            max_file_size=LARGEST_UPLOAD,
            strict_cors=True,
            app_kwargs={"middleware": [Middleware(SameSite, local_only=user is None)]},
            run_history=False,  # it would keep what is typed, tokens too, in the browser
            theme=theme(),
            css=CSS,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            # Without its look at its own page, which goes through the proxies of the environment, gives a busy machine
            # three seconds, and then advises a public link. The server listens by now.
            _frontend=False,
        )
    except OSError as error:
        raise UserError(
            f"The app cannot listen on {options.host}:{options.port} ({error}).", fix="Choose another --port."
        ) from error
    return address


def serve(blocks: gr.Blocks, app: App, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, SIGTERM or the end of the launcher; then stop the work at its next safe point, and close."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    when_the_starter_ends(ended.set)
    say(f"{blocks.title}: {open_server(blocks, app, options)}   (Ctrl-C ends it)")
    while not ended.wait(1.0):  # Windows delivers Ctrl-C only between waits
        pass
    if app.background.busy:
        say("Stopping the work under way; what is done is kept.")
        app.background.stop()
        if not app.background.wait(STOP_WAIT_S):
            say("It does not stop; what it saved last is kept.")
    blocks.close()
