"""Try the network in the browser: drop in a photograph, or use the camera.

    python demo.py                                       the weights model_save/resnet18_photos.pth
    python demo.py --model_path RUN/best.pth --port 8000

The page is for this machine alone, and asks no other one for anything. Ctrl-C ends it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.dataset import EMOTIONS
from data.readers.folders import read_image
from data.synthetic.generate import synthetic_dataset
from inference.predictor import Face, FacePredictor, marks
from inference.visualize import annotate_picture
from utils.cli import parse
from utils.errors import DataError, OptionError, run_main
from utils.run_folder import PHOTO_WEIGHTS

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
# At the start gradio asks its own server, by HTTP, whether it is there: no proxy knows that.
os.environ["no_proxy"] = f"{os.getenv('no_proxy') or os.getenv('NO_PROXY') or ''},127.0.0.1"
try:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as missing:
    sys.exit(f"error: the demo needs {missing.name}; pip install -r requirements-demo.txt")

HOST = "127.0.0.1"
MAX_UPLOAD = "20mb"
MOST_FACES = 12  # that have bars; all are marked in the picture
SIDES = (640, 1600)  # pixels: a result's longer side is brought between these
EXAMPLES_SEED = 2  # of the drawn faces: clear ones of both light and dark skin

TITLE = "Facial expressions and landmarks"
ABOUT = f"""# {TITLE}
The result says how a face looks to FER2013's labels, not what a person feels; it is often wrong.
For research only: do not judge people by it. Pictures stay on this machine, and are deleted when
the demo ends."""
WAITING = '<p class="message">The reading of each face will appear here.</p>'
NO_FACE = (
    "No face was found. The detector looks for upright faces seen from the front, at least a "
    "twelfth of the picture's longer side. If the picture is one face, tightly cut out, tick the "
    "box under it."
)
NO_CAMERA = (
    "No camera could be opened. Is one connected, used by nothing else, and allowed to this page?"
)
STYLE = """
#readings, #readings .html-container { padding: 0; }
.message { padding: 12px 16px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.message[role=alert] { border-left: 4px solid #d6604d; }
.faces { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
.faces + .message { margin-top: 12px; }
.face { padding: 12px 16px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.face h3 { margin: 0 0 8px; font-size: 16px; }
.share { display: grid; grid-template-columns: 72px 1fr 46px; gap: 8px; line-height: 24px; }
.share.best { font-weight: 600; }
.share span { overflow: hidden; text-overflow: ellipsis; }
.share span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar { align-self: center; height: 10px; border-radius: 3px; background: #80808026; }
.bar i { display: block; height: 100%; border-radius: 3px; background: #92b4d3; }
.best .bar i { background: #2166ac; }
.dark .best .bar i { background: #6aa9e0; }
.dark .bar i { background: #48698a; }
"""


@dataclass(frozen=True)
class DemoOptions:
    """Options of demo.py."""

    model_path: str = str(PHOTO_WEIGHTS)
    """The weights: a best.pth, the original method's resnet18.pth, or an .onnx of export.py."""
    port: int = 7860
    """Where the page is found, on this machine only: http://127.0.0.1:PORT."""


def main() -> None:
    options = parse(DemoOptions, sys.argv[1:], __doc__)
    check_port(options.port)
    reader = Reader(FacePredictor(options.model_path))
    with tempfile.TemporaryDirectory(prefix="fer-demo-") as folder:
        # Uploads and results lie here too, not in gradio's own folder, which it never empties.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        page = build_page(reader, write_examples(Path(folder)))
        with served(page, options.port):
            address = f"http://{HOST}:{options.port}"
            print(f"the demo is at {address} (Ctrl-C ends it)", flush=True)
            while True:  # an endless wait would not hear Ctrl-C on Windows
                time.sleep(1)


class Reader:
    """Turns an uploaded picture into what the page shows.

    Args:
        predictor: which finds faces itself.
    """

    def __init__(self, predictor: FacePredictor) -> None:
        self.class_names = predictor.class_names
        whole = copy(predictor)  # the same network
        whole.cropped = True
        self._predictors = {False: predictor, True: whole}

    def __call__(self, upload: dict[str, Any] | None, cropped: bool) -> tuple[Any, str]:
        """Return the picture with its faces marked, or None, and what to say about them in HTML.

        Args:
            upload: gradio's description of a file; None where the picture was taken away.
            cropped: the picture is one face, tightly cut out.
        """
        if not upload:
            return None, WAITING
        path = Path(upload["path"])
        try:
            image = read_image(path, 3)
            faces = self._predictors[bool(cropped)](image)
        except DataError as error:
            name = upload.get("orig_name") or path.name
            return None, alert(str(error).replace(str(path), name))
        if not faces:
            return marked(image, [], []), alert(NO_FACE)
        captions = [f"{f.expression} {100 * f.confidence:.0f} %" for f in faces]
        if len(faces) > 1:
            captions = [f"{i}: {caption}" for i, caption in enumerate(captions, 1)]
        return marked(image, faces, captions), bars(faces, self.class_names)


def marked(image: np.ndarray, faces: Sequence[Face], captions: Sequence[str]) -> np.ndarray:
    """Return an image with its faces marked, at a size at which marks can be seen and sent."""
    return annotate_picture(image, *marks(faces), captions, SIDES)


def bars(faces: Sequence[Face], class_names: Sequence[str]) -> str:
    """Return the probabilities of each face as bars, in HTML."""
    cards = "".join(
        _card("Face" if len(faces) == 1 else f"Face {i}", face, class_names)
        for i, face in enumerate(faces[:MOST_FACES], 1)
    )
    left = len(faces) - MOST_FACES
    rest = f'<p class="message">And {left} more, marked in the picture only.</p>'
    return f'<div class="faces">{cards}</div>{rest if left > 0 else ""}'


def _card(title: str, face: Face, class_names: Sequence[str]) -> str:
    rows = "".join(
        f'<div class="share{" best" if name == face.expression else ""}">'
        f"<span>{escape(name)}</span>"
        f'<div class="bar"><i style="width: {100 * share:.1f}%"></i></div>'
        f"<span>{100 * share:.0f} %</span></div>"
        for name, share in zip(class_names, face.probabilities)
    )
    return f'<div class="face"><h3>{title}</h3>{rows}</div>'


def alert(text: str) -> str:
    """Return a message that something is wrong, in HTML."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def tell_of_cameras() -> str:
    """Return JavaScript for the readings: gradio says nothing of a camera that does not open."""
    return f"""
        const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
        devices.getUserMedia = (wishes) => open(wishes).catch((error) => {{
            props.value = {json.dumps(alert(NO_CAMERA))};
            throw error;
        }});
    """


def write_examples(folder: Path) -> list[str]:
    """Draw a face of each class, and return the paths of the pictures."""
    faces = synthetic_dataset(training=1, public=0, private=0, seed=EXAMPLES_SEED)
    paths = [str(folder / f"{name}.png") for name in EMOTIONS]
    for path, image in zip(paths, faces.images):
        large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        # Not imwrite, which cannot write to every path of Windows, and does not say so.
        Path(path).write_bytes(cv2.imencode(".png", large)[1].tobytes())
    return paths


def build_page(reader: Reader, examples: Sequence[str]) -> gr.Blocks:
    """Lay out the page, and say what calls the reader."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    label="Picture", sources=["upload", "webcam", "clipboard"], height=380
                )
                cropped = gr.Checkbox(label="The picture is one face, tightly cut out")
                drawn = gr.Dataset(
                    label="Examples (drawn faces, no real people)",
                    components=[gr.Image(render=False)],
                    samples=[[path] for path in examples],
                    type="index",
                )
            with gr.Column(scale=3, min_width=320):
                result = gr.Image(
                    label="Result",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    height=460,
                )
                text = gr.HTML(WAITING, elem_id="readings", js_on_load=tell_of_cameras())
        # Whatever changes, the last reading is of the picture and the box as they are then. The
        # image's own `input` would come with the old picture when that is taken away.
        gr.on(
            [picture.change, cropped.change],
            reader,
            [picture, cropped],
            [result, text],
            preprocess=False,  # the reader opens the file, and says what is wrong with it
            concurrency_limit=1,
            trigger_mode="always_last",
            api_visibility="private",
        )
        # The box belongs to the picture: the next one is a photograph, unless somebody says so.
        picture.clear(lambda: False, outputs=cropped, api_visibility="private")
        drawn.click(
            lambda i: (examples[i], True), drawn, [picture, cropped], api_visibility="private"
        )
    return page


@contextmanager
def served(page: gr.Blocks, port: int) -> Iterator[None]:
    """Serve a page within the block, to this machine alone."""
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            app_kwargs={
                "middleware": [
                    Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
                    Middleware(SelfContained),
                ]
            },
            theme=gr.themes.Base(
                primary_hue="blue",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css=STYLE,
        )
    except OSError as error:
        raise OptionError(f"no page could be served on port {port} ({error})") from error
    try:
        yield
    finally:
        page.close(verbose=False)


class SelfContained:
    """Lets no page that the server sends load anything from elsewhere, whatever is in it."""

    POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", self.POLICY),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def check_port(port: int) -> None:
    """Raise an OptionError unless a page can be served on a port."""
    if not 1 <= port <= 65535:
        raise OptionError(f"--port {port}: ports are 1 to 65535")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OptionError(f"port {port}: {reason}; name another with --port") from error


if __name__ == "__main__":
    run_main(main)
