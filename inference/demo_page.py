"""The page of demo.py: its texts, its layout, and what it shows for an uploaded image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Template
from PIL import Image

from data.readers.images import read_image
from data.synthetic.generate import synthetic_dataset
from inference.face import Face
from inference.predictor import FacePredictor
from inference.visualize import annotate_resized, draw_heat_maps
from utils.classes import EMOTIONS
from utils.errors import DataError

if TYPE_CHECKING:
    import gradio as gr

MAX_CARDS = 12  # faces with bars; all faces are marked in the image
RESULT_SIDES = (640, 1600)  # pixels: smallest and largest longer side of a result
EXAMPLES_SEED = 2  # of the synthetic faces: clear ones of light and dark skin

TITLE = "Facial expressions and landmarks"
NOTICE = f"""# {TITLE}
The result is how annotators would describe a face, not what a person feels, and it is often
wrong. For research only: do not judge people by it. Images stay on this machine, and are deleted
when the demo ends."""
WAITING = '<p class="message">The prediction for each face will appear here.</p>'
NO_FACE = (
    "No face was found. The detector finds upright frontal faces of at least a twelfth of the "
    "image's longer side. If the image is one tightly cropped face, tick the box below it."
)
NO_CAMERA = (
    "No camera could be opened. Connect one, close other programs that use it, and allow this "
    "page to use it."
)
# gradio shows nothing if a camera fails.
CAMERA_SCRIPT = """
const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
devices.getUserMedia = (constraints) => open(constraints).catch((error) => {
    props.value = MESSAGE;
    throw error;
});
"""
STYLE = Path(__file__).with_name("demo.css")
CARDS = Path(__file__).with_name("demo_cards.html")


class UploadHandler:
    """Predicts an uploaded image, and returns what the page shows."""

    def __init__(self, predictor: FacePredictor) -> None:
        self._predictor = predictor

    def __call__(
        self, upload: dict[str, Any] | None, cropped: bool, explain: bool = False
    ) -> tuple[np.ndarray | None, str]:
        """Return the annotated image, or None, and HTML with the predictions or a message.

        Args:
            upload: gradio's description of the file; None if the image was removed.
            cropped: The image is one tightly cropped face.
            explain: Draw heat maps, and list the contributions of facial parts.
        """
        if not upload:
            return None, WAITING
        path = Path(upload["path"])
        try:
            image = read_image(path, 3)
            predictor = copy(self._predictor)  # shares the network
            predictor.explain = bool(explain)
            if cropped:
                predictor.cropped, predictor.views = True, 0
            faces = predictor(image)
        except DataError as error:
            name = upload.get("orig_name") or path.name
            return None, alert(str(error).replace(str(path), name))
        text = cards(faces, predictor.class_names) if faces else alert(NO_FACE)
        image = draw_heat_maps(image, faces)
        return annotate_resized(image, faces, RESULT_SIDES, first_number=1), text


def cards(faces: Sequence[Face], class_names: Sequence[str]) -> str:
    """Return HTML with the probabilities of each face as bars."""
    template = Template(CARDS.read_text(encoding="utf-8"), autoescape=True)
    return template.render(faces=faces, class_names=class_names, max_cards=MAX_CARDS)


def alert(text: str) -> str:
    """Return HTML with an error message."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def write_examples(folder: Path) -> list[str]:
    """Write a synthetic face of each class, and return the paths of the images."""
    dataset = synthetic_dataset(training=1, public=0, private=0, seed=EXAMPLES_SEED)
    paths = [str(folder / f"{name}.png") for name in EMOTIONS]
    for path, image in zip(paths, dataset.images):
        Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC).save(path)
    return paths


def build_page(handler: UploadHandler, examples: Sequence[str]) -> gr.Blocks:
    """Build the page, with paths of cropped faces as examples."""
    import gradio as gr  # noqa: PLC0415  (demo.py sets its environment first)

    camera_script = CAMERA_SCRIPT.replace("MESSAGE", json.dumps(alert(NO_CAMERA)))
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(NOTICE)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                sources = ["upload", "webcam", "clipboard"]
                image = gr.Image(label="Image", sources=sources, height=380)
                cropped = gr.Checkbox(label="The image is one tightly cropped face")
                explain = gr.Checkbox(label="Explain the predictions")
                gallery = gr.Dataset(
                    label="Examples (synthetic faces, no real people)",
                    components=[gr.Image(render=False)],
                    samples=[[path] for path in examples],
                    type="index",
                )
            with gr.Column(scale=3, min_width=320):
                buttons = ["download", "fullscreen"]
                result = gr.Image(label="Result", interactive=False, buttons=buttons, height=460)
                text = gr.HTML(WAITING, elem_id="predictions", js_on_load=camera_script)
        # `change` of all: the image's `input` event would have the old image when it is removed.
        gr.on(
            [image.change, cropped.change, explain.change],
            handler,
            [image, cropped, explain],
            [result, text],
            preprocess=False,  # the handler reads the file, and reports errors
            concurrency_limit=1,
            trigger_mode="always_last",
            api_visibility="private",
        )
        # The box is for one image: the next one is a photograph by default.
        image.clear(lambda: False, outputs=cropped, api_visibility="private")
        gallery.click(
            lambda i: (examples[i], True), gallery, [image, cropped], api_visibility="private"
        )
    return page
