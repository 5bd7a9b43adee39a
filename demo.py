"""Predict expressions in the browser, for uploaded photographs or a camera.

    python demo.py                                       the weights model_save/resnet18_ferplus.pth
    python demo.py --model_path RUN/best.pth --port 8000

The page is only reachable from this machine, and loads nothing from elsewhere. Ctrl-C ends it.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference.demo_page import STYLE, UploadHandler, build_page, write_examples
from inference.predictor import FacePredictor
from utils.cli import parse
from utils.errors import OptionError, run_main
from utils.run_folder import FERPLUS_WEIGHTS

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"


@dataclass(frozen=True)
class DemoOptions:
    """Options of demo.py."""

    model_path: str = str(FERPLUS_WEIGHTS)
    """Weights: a best.pth, the resnet18.pth of RainbowRui's repository, or an .onnx file of
    export.py."""
    port: int = 7860
    """Port of the page, on this machine only: http://127.0.0.1:PORT."""


def main() -> None:
    options = parse(DemoOptions, sys.argv[1:], __doc__)
    configure_gradio()
    check_port(options.port)
    handler = UploadHandler(FacePredictor(options.model_path))
    with tempfile.TemporaryDirectory(prefix="fer-demo-") as folder:
        # Uploads and results too: gradio never empties its own folder.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        page = build_page(handler, write_examples(Path(folder)))
        with serve(page, options.port):
            print(f"The demo is at http://{HOST}:{options.port} (Ctrl-C ends it)", flush=True)
            while True:  # on Windows an endless wait would ignore Ctrl-C
                time.sleep(1)


def configure_gradio() -> None:
    """Turn off gradio's requests to other machines, and import it or raise an OptionError."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # gradio checks its own server with an HTTP request, which must not go through a proxy.
    proxy_exceptions = os.getenv("no_proxy") or os.getenv("NO_PROXY") or ""
    os.environ["no_proxy"] = f"{proxy_exceptions},{HOST}"
    try:
        import gradio  # noqa: F401, PLC0415
    except ImportError as error:
        raise OptionError(
            f"the demo needs {error.name}; run `pip install -r requirements-demo.txt`"
        ) from error


@contextmanager
def serve(page: gr.Blocks, port: int) -> Iterator[None]:
    """Serve a page within the block, to this machine only, or raise an OptionError."""
    import gradio as gr  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: PLC0415

    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(ContentSecurityPolicy),
    ]
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Base(primary_hue="blue", **fonts)
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            max_file_size="20mb",
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            app_kwargs={"middleware": middleware},
            theme=theme,
            css_paths=STYLE,
        )
    except OSError as error:
        raise OptionError(f"port {port}: the page cannot be served ({error})") from error
    try:
        yield
    finally:
        page.close(verbose=False)


class ContentSecurityPolicy:
    """ASGI middleware that forbids pages to load anything from other machines."""

    POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                header = b"content-security-policy", self.POLICY
                message["headers"] = [*message["headers"], header]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def check_port(port: int) -> None:
    """Raise an OptionError if a port is invalid or in use."""
    if not 1 <= port <= 65535:
        raise OptionError(f"--port {port}: give 1 to 65535")
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno).lower()
        raise OptionError(f"port {port}: {reason}; give another --port") from error


if __name__ == "__main__":
    run_main(main)
