"""Measure the static web page in Chromium: time of the first prediction, camera, accuracy.

    python export.py --web web/dist
    python -m tools.benchmarks.page --data data/fer2013.csv --ferplus data/fer2013new.csv

The accuracy is that on photographs made of PublicTest images, with the page's face detector and
with dlib. It needs `pip install playwright` and a Chromium.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from data.dataset import resize_image
from inference.predictor import FacePredictor
from tools.benchmarks.common import FaceOptions, public_test
from utils.cli import parse
from utils.errors import OptionError, run_main

if TYPE_CHECKING:
    from playwright.sync_api import Page

CAMERA_SECONDS = 5
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
SETUP = """async () => {
    const predictor = await (await import("./app.js")).ready;
    const canvas = document.createElement("canvas");
    window.predict = async (base64) => {
        const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
        const bitmap = await createImageBitmap(new Blob([bytes]));
        Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
        canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
        return (await predictor.predictPicture(canvas)).map((face) => face.probabilities);
    };
}"""


@dataclass(frozen=True)
class PageOptions(FaceOptions):
    """Options of the benchmark."""

    page: str = "web/dist"
    """The folder that export.py --web has written."""
    images: int = 400
    """Number of random PublicTest images; 0 measures the times only."""
    side: int = 192
    """Width of the photographs in pixels."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, *args: object) -> None:
        """Print nothing."""


def main() -> None:
    options = parse(PageOptions, sys.argv[1:], __doc__)
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415  (of tests/requirements.txt)
    except ImportError as error:
        raise OptionError("run `pip install playwright`") from error
    folder = Path(options.page)
    if not (folder / "model.onnx").is_file():
        raise OptionError(f"{folder} has no page; run `python export.py --web {folder}`")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.NamedTemporaryFile(suffix=".mjpeg") as film, sync_playwright() as playwright:
        picture = cv2.resize(cv2.imread(str(folder / "example.jpg")), (640, 640))[:480]
        film.write(cv2.imencode(".jpg", picture)[1].tobytes())
        film.flush()
        flags = ["--no-sandbox", *CAMERA, f"--use-file-for-fake-video-capture={film.name}"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        measure_times(page, f"http://127.0.0.1:{server.server_port}/")
        if options.images:
            compare_accuracy(page, options)


def measure_times(page: Page, address: str) -> None:
    """Print the time from opening the page to the example's prediction, and the camera's rate."""
    start = time.perf_counter()
    page.goto(address)
    page.locator("#example").click()
    page.locator(".face").wait_for()
    print(f"first prediction after {time.perf_counter() - start:.1f} s")
    page.locator("#camera").click()
    page.locator("#speed").get_by_text("frames").wait_for()
    page.wait_for_timeout(1000 * CAMERA_SECONDS)
    print(f"camera with one face: {page.locator('#speed').inner_text()}", flush=True)
    page.locator("#camera").click()


def compare_accuracy(page: Page, options: PageOptions) -> None:
    """Print how many faces the page and `predict.py` find, and their accuracy."""
    predictor = FacePredictor(options.model_path, gpu_ids="-1")
    dataset = public_test(options, predictor.runtime, options.images)
    page.evaluate(SETUP)
    predicted = np.full((len(dataset), 2), -1)
    for i, image in enumerate(resize_image(image, options.side) for image in dataset.images):
        content = base64.b64encode(cv2.imencode(".png", image)[1]).decode()
        faces = page.evaluate("predict", content), [face.probabilities for face in predictor(image)]
        predicted[i] = [np.argmax(found[0]) if found else -1 for found in faces]
    is_found, is_correct = predicted >= 0, predicted == dataset.labels[:, None]
    both = is_found.all(1)
    for k, name in enumerate(("page", "predict.py")):
        found, accuracy = 100 * is_found[:, k].mean(), 100 * is_correct[both, k].mean()
        print(f"{name:11}finds {found:.1f} % of {len(dataset)} faces, and predicts")
        print(f"           {accuracy:.1f} % of the {both.sum()} faces correctly that both find")


if __name__ == "__main__":
    run_main(main)
