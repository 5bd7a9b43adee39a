"""The static web page of export.py --web, in a real browser, served under a sub-path."""

import base64
import gzip
import re
import socket
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import export
from data.dataset import resize_image
from data.synthetic.generate import synthetic_dataset
from inference import web
from inference.predictor import FacePredictor
from inference.tracking import box_iou
from models.checkpoint import Checkpoint
from models.fernet import Architecture, FERNet
from utils.errors import OptionError, ProjectError, RunError, WeightsError
from utils.run_folder import FERPLUS_WEIGHTS

CROP_SIZES = ((48, 48), (31, 31), (96, 96), (133, 133), (200, 160), (144, 50))
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
# Functions of the page's script that take a PNG file in base64.
SETUP = """async () => {
    const { Tracker, crop, ready } = await import("./app.js");
    const predictor = await ready;
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("2d", { willReadFrequently: true });
    window.canvasOf = async (base64) => {
        const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
        const bitmap = await createImageBitmap(new Blob([bytes]));
        Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
        context.drawImage(bitmap, 0, 0);
        return canvas;
    };
    window.predictPicture = async (base64) => predictor.predictPicture(await canvasOf(base64));
    window.predictCropped = async (base64) => {
        const { width, height } = await canvasOf(base64);
        return predictor.predictCropped(context.getImageData(0, 0, width, height));
    };
    window.resize = async (base64) => {
        const { width, height } = await canvasOf(base64);
        const image = context.getImageData(0, 0, width, height);
        return Array.from(crop(image, [0, 0, width, height], 48, 3));
    };
    window.track = async (base64, steps, shift) => {
        const picture = await createImageBitmap(await canvasOf(base64));
        const tracker = new Tracker(predictor), boxes = [];
        let detections = 0;
        const detect = predictor.detect.bind(predictor);
        predictor.detect = (...values) => (detections++, detect(...values));
        for (let i = 0; i < steps; i++) {
            context.drawImage(picture, i * shift, 0);
            boxes.push((await tracker.update(canvas, 10 * i)).map(({ box }) => box));
        }
        predictor.detect = detect;
        return { boxes, detections };
    };
}"""


def run(*argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["export.py", *map(str, argv)])
        export.main()


@pytest.fixture(scope="module")
def dist(chromium, tmp_path_factory):
    """Return the folder of the page, with the released weights for photographs.

    The network in 32 bits is at site/network.onnx, outside of the page.
    """
    folder = tmp_path_factory.mktemp("site") / "below" / "page"

    def keep(model, compress=web.compress_weights):
        if model.metadata_props:
            (folder.parents[1] / "network.onnx").write_bytes(model.SerializeToString())
        return compress(model)

    try:
        with pytest.MonkeyPatch.context() as context:
            context.setattr(web, "compress_weights", keep)
            run("--web", folder)
    except ProjectError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(f"needs npm's registry: {error}")
    return folder


@pytest.fixture(scope="module")
def address(dist):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=dist.parents[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/below/page/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(chromium):
    with chromium() as browser:
        yield browser


@contextmanager
def opened(browser, address, network=None, **options):
    """Open the page in a context of its own; at the end, check what it has requested.

    `network` is the content of another model.onnx.
    """
    context = browser.new_context(**options)
    page, urls, messages = context.new_page(), [], []
    page.set_default_timeout(30_000)
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(f"uncaught {error}"))
    page.urls = urls
    if network:
        page.route("**/model.onnx", lambda route: route.fulfill(body=network))
    page.goto(address)
    yield page
    context.close()
    assert len(urls) > 5
    assert not [url for url in urls if not url.startswith((address, "data:,"))]
    assert not [text for text in messages if "Content Security" in text or "uncaught" in text]


@pytest.fixture(scope="module")
def library(browser, address):
    """Return a page with functions that call its script."""
    with opened(browser, address) as page:
        page.evaluate(SETUP)
        yield page


def encoded(image):
    return base64.b64encode(cv2.imencode(".png", image[..., ::-1])[1]).decode()


def save(folder, name, image):
    Image.fromarray(image).save(folder / name)
    return folder / name


def show(page, path):
    page.locator("input[type=file]").set_input_files(path)
    page.locator(".face").first.wait_for()


def crops():
    """Return 50 synthetic faces in color, which are enlarged, copied or reduced to 48 x 48."""
    images = synthetic_dataset(training=8, public=0, private=0, seed=3).images[:50]
    return [resized(image, CROP_SIZES[i % len(CROP_SIZES)]) for i, image in enumerate(images)]


def resized(image, size):
    tint = np.random.default_rng(0).uniform(0.6, 1, 3)
    return np.round(cv2.resize(image, size)[..., None] * tint).astype(np.uint8)


# The same results as predict.py


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.04), (32, 1e-3)])
def test_crops_have_the_probabilities_of_predict(browser, address, library, dist, bits, tolerance):
    images, predictor = crops(), FacePredictor(FERPLUS_WEIGHTS, cropped=True, gpu_ids="-1")
    if bits == 8:
        faces = [library.evaluate("predictCropped", encoded(image))[0] for image in images]
    else:
        network = (dist.parents[1] / "network.onnx").read_bytes()
        with opened(browser, address, network) as page:
            page.evaluate(SETUP)
            faces = [page.evaluate("predictCropped", encoded(image))[0] for image in images]
    assert len(images) == 50
    for image, face in zip(images, faces):
        [expected] = predictor(image)
        np.testing.assert_allclose(face["probabilities"], expected.probabilities, atol=tolerance)
        scale = np.array(image.shape[1::-1]) / 48
        difference = (np.array(face["landmarks"]) - expected.landmarks) / scale
        assert np.abs(difference).max() < (0.5 if bits == 8 else 0.05)


@pytest.mark.parametrize("size", [*CROP_SIZES, (60, 40), (17, 90)])
def test_pictures_are_resized_as_by_opencv(library, size):
    image = resized(synthetic_dataset(1, 0, 0).images[0], size)
    pixels = np.array(library.evaluate("resize", encoded(image))).reshape(3, 48, 48)
    difference = pixels - resize_image(image, 48).transpose(2, 0, 1).astype(int)
    assert np.abs(difference).max() <= 1  # OpenCV computes with integers
    assert (difference != 0).mean() < (0.15 if min(size) < 48 < max(size) else 0.002)


def test_photographs_have_the_faces_of_predict(library, astronaut, both):
    predictor = FacePredictor(FERPLUS_WEIGHTS, gpu_ids="-1")
    for image in (astronaut, both):
        faces, expected = library.evaluate("predictPicture", encoded(image)), predictor(image)
        assert len(faces) == len(expected)
        for face, other in zip(faces, expected):
            assert box_iou(np.array(face["box"]), other.box) > 0.75
            assert np.argmax(face["probabilities"]) == other.probabilities.argmax()
            distance = np.linalg.norm(np.array(face["landmarks"]) - other.landmarks, axis=1)
            assert distance.mean() < 0.04 * (other.box[2] - other.box[0])


def test_without_a_detection_the_crop_follows_the_landmarks(library, astronaut):
    image = astronaut[:250, 50:400]
    result = library.evaluate("([file]) => track(file, 12, 6)", [encoded(image)])
    assert result["detections"] == 1  # 12 frames are 110 ms
    boxes = np.array(result["boxes"])[:, 0]
    [face] = library.evaluate("predictPicture", encoded(image))
    shift = boxes[-1] - face["box"]
    assert np.abs(shift - (66, 0, 66, 0)).max() < 8


def test_the_heat_map_is_that_of_predict(library, astronaut):
    [expected] = FacePredictor(FERPLUS_WEIGHTS, cropped=True, explain=True, gpu_ids="-1")(astronaut)
    [face] = library.evaluate("predictCropped", encoded(astronaut))
    heat = np.array(face["maps"])[np.argmax(face["probabilities"])]
    size = np.abs(expected.explanation.map).max()
    np.testing.assert_allclose(heat, expected.explanation.map.ravel(), atol=0.02 * size)


# The page


def test_the_example_needs_no_connection_once_loaded(browser, address, tmp_path, both):
    with opened(browser, address) as page:
        page.get_by_role("progressbar").wait_for()
        page.locator("body[data-ready]").wait_for()
        page.context.set_offline(True)
        number = len(page.urls)
        page.get_by_role("button", name="Show example").press("Enter")
        page.get_by_role("status").get_by_text("1 face: happy").wait_for(state="attached")
        assert page.get_by_role("img", name="Picture with 1 face: happy").is_visible()
        rows = page.locator(".face li").all_inner_texts()
        values = [int(text.split()[1]) for text in rows]
        assert sum(values) == pytest.approx(100, abs=4)
        widths = page.locator(".bar i").evaluate_all("bars => bars.map(bar => bar.style.width)")
        assert [float(width.rstrip("%")) for width in widths] == pytest.approx(values, abs=0.6)
        show(page, save(tmp_path, "both.png", both))
        page.locator(".face").nth(1).wait_for()
        assert page.locator(".face").count() == 2
        assert page.locator(".face small").all_inner_texts() == ["Face 1", "Face 2"]
        assert len(page.urls) == number


def test_the_page_fits_a_narrow_screen_and_a_keyboard(browser, address):
    size = {"width": 360, "height": 740}
    with opened(browser, address, viewport=size, color_scheme="dark") as page:
        order = []
        for _ in range(7):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id"))
        assert order == ["file", "camera", "example", "boxes", "landmarks", "heat", "cropped"]
        page.keyboard.press("Space")
        assert page.get_by_label("one cropped face").is_checked()
        page.get_by_role("button", name="Show example").click()
        page.locator(".face").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, color[4:-1].split(","))) < 60
        page.get_by_text("For research only.").wait_for()
        page.get_by_label("Heat map").check()
        page.get_by_text("Red regions raise").wait_for()


def test_the_camera_is_predicted_in_real_time(chromium, address, astronaut, tmp_path):
    still = cv2.resize(astronaut, (640, 640))[:480, ::-1]
    film = tmp_path / "film.mjpeg"
    film.write_bytes(cv2.imencode(".jpg", still[..., ::-1])[1].tobytes())
    with (
        chromium(*CAMERA, f"--use-file-for-fake-video-capture={film}") as browser,
        opened(browser, address) as page,
    ):
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_role("img", name="Picture with 1 face: happy").wait_for()
        speed = page.locator("#speed", has_text=re.compile(r"([2-9]|\d\d) frames/s"))
        speed.wait_for()  # wait_for_function would evaluate a string, which the page forbids
        page.get_by_role("button", name="Stop the camera").click()
        page.get_by_role("button", name="Use the camera").wait_for()
        assert page.locator("#speed").is_hidden()


@pytest.mark.parametrize(
    "event",
    [
        "new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true })",
        "new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true })",
    ],
    ids=["drop", "paste"],
)
def test_a_picture_can_be_dropped_and_pasted(browser, address, both, event):
    with opened(browser, address) as page:
        page.locator("body[data-ready]").wait_for()
        page.evaluate(
            f"""(base64) => {{
                const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], "both.png", {{ type: "image/png" }}));
                document.getElementById("viewer").dispatchEvent({event});
            }}""",
            encoded(both),
        )
        page.locator(".face").nth(1).wait_for()
        assert page.locator(".face").count() == 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "No camera was found"),
        (("--use-fake-device-for-media-stream", "--deny-permission-prompts"), "is blocked"),
    ],
)
def test_a_camera_that_cannot_be_opened_is_reported(chromium, address, flags, text):
    with chromium(*flags) as browser, opened(browser, address) as page:
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_role("alert").get_by_text(text).wait_for()
        page.get_by_role("button", name="Show example").click()  # still possible
        page.locator(".face").wait_for()
        assert page.get_by_role("alert").count() == 0


def test_pictures_that_cannot_be_used_are_reported(browser, address, tmp_path, astronaut):
    large = cv2.resize(astronaut, (3600, 3600))
    cv2.imwrite(str(tmp_path / "large.jpg"), large[..., ::-1])
    ramp = np.tile(np.linspace(0, 255, 300).astype(np.uint8), (200, 1))
    save(tmp_path, "ramp.png", ramp)
    (tmp_path / "<b>.png").write_bytes(b"no image")
    with opened(browser, address) as page:
        page.locator("body[data-ready]").wait_for()
        for name, text in {
            "<b>.png": "<b>.png cannot be read as a picture",
            "ramp.png": "No face was found",
            "large.jpg": "scaled down from 3600 × 3600 to 3000 × 3000 pixels",
        }.items():
            page.locator("input[type=file]").set_input_files(tmp_path / name)
            page.get_by_role("alert").get_by_text(text).wait_for()
        assert page.locator(".face").count() == 1
        page.locator("input[type=file]").set_input_files(tmp_path / "ramp.png")
        page.get_by_role("alert").get_by_text("No face was found").wait_for()
        page.get_by_label("one cropped face").check()
        page.locator(".face").wait_for()
        page.evaluate(
            "document.body.dispatchEvent(new ClipboardEvent('paste', "
            "{ clipboardData: new DataTransfer(), bubbles: true }))"
        )
        page.get_by_role("alert").get_by_text("The clipboard has no picture").wait_for()


def test_a_browser_or_server_that_cannot_run_the_network_is_reported(browser, address):
    for script, missing, text in (
        ("WebAssembly.validate = () => false", "", "no WebAssembly SIMD"),
        ("", "**/model.onnx", r"model.onnx could not be loaded (HTTP 404)"),
    ):
        context = browser.new_context()
        page = context.new_page()
        page.add_init_script(script)
        if missing:
            page.route(missing, lambda route: route.fulfill(status=404))
        page.goto(address)
        page.get_by_role("alert").get_by_text(text).wait_for()
        assert page.get_by_role("button", name="Show example").is_disabled()
        context.close()


# The files


def test_the_page_is_small(dist):
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in dist.iterdir()}
    assert sum(sizes.values()) < 12e6
    assert (dist / "model.onnx").stat().st_size < 4e6
    assert {"index.html", "LICENSE.face-api.txt"} <= sizes.keys()


def test_weights_are_compressed_to_8_bits(dist):
    model = onnx.load(dist.parents[1] / "network.onnx")
    compressed = onnx.load(dist / "model.onnx")
    assert compressed.ByteSize() < 0.27 * model.ByteSize()
    onnx.checker.check_model(compressed)
    stored = {t.name: numpy_helper.to_array(t) for t in compressed.graph.initializer}
    large = [t for t in model.graph.initializer if f"{t.name}.int8" in stored]
    assert len(large) > 20
    for tensor in large:
        scales = stored[f"{tensor.name}.scale"]
        weights, values = numpy_helper.to_array(tensor), stored[f"{tensor.name}.int8"]
        restored = (values.T * scales).T
        error = np.abs(restored - weights).reshape(len(weights), -1).max(1)
        assert (error <= 0.501 * scales).all()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", r"cannot be downloaded \(.*404.*check the network"),
        (b"HTTP/1.1 200 OK\r\n\r\nother", "differs from npm's package"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart", r"cannot be downloaded \(Incomplete"),
        (None, r"cannot be downloaded \(.*timed out"),
    ],
)
def test_a_failed_download_is_reported(monkeypatch, answer, text):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        if answer:
            threading.Thread(target=reply, daemon=True).start()
        port = server.getsockname()[1]
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{port}/")
        monkeypatch.setattr(web, "TIMEOUT", 20.0 if answer else 0.5)
        with pytest.raises(RunError, match=rf"127\.0\.0\.1:{port}/onnxruntime-web/.*{text}"):
            web.download_runtime()


@pytest.mark.parametrize("registry", ["no address", "http://127.0.0.1:1"])
def test_without_the_registry_no_page_is_written(monkeypatch, tmp_path, registry):
    monkeypatch.setenv("npm_config_registry", registry)
    with pytest.raises(RunError, match="cannot be downloaded"):
        run("--web", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_options_that_the_page_does_not_use_are_refused(tmp_path):
    with pytest.raises(OptionError, match="--web only writes the page; leave out --int8"):
        run("--web", tmp_path / "page", "--int8")


def test_weights_without_landmarks_are_refused(tmp_path):
    architecture = Architecture(width=0.1, landmarks=False)
    weights = FERNet(architecture).state_dict()
    with pytest.raises(WeightsError, match="needs landmarks"):
        web.write_page(Checkpoint(architecture, weights, ("a",) * 7, 48), tmp_path / "page")
