"""demo.py in a real browser: what the page shows, and that it loads nothing from elsewhere."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from inference.face import Face
from inference.predictor import FacePredictor
from inference.visualize import BLUE, annotate_resized
from models.checkpoint import Checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.coordinates import to_normalized
from utils.errors import ProjectError, run_main

pytest.importorskip("gradio", reason="the demo needs gradio: pip install -r requirements-demo.txt")

import demo
from inference import demo_page

ROOT = Path(__file__).resolve().parents[1]
CARD = re.compile(r"(Face(?: \d+)?)\s+(.*)", re.DOTALL)
ROW = re.compile(r"(\w+)\s+(\d+) %")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return an untrained network's file, with probabilities that differ and a mean face."""
    torch.manual_seed(0)
    architecture = Architecture(width=0.1)
    network = FERNet(architecture)
    with torch.no_grad():
        network.classifier.bias.copy_(torch.linspace(2, -2, len(EMOTIONS)))
        network.classifier.weight.mul_(4)
        points = synthetic_dataset(training=2, public=0, private=0).landmarks.mean(0)
        network.mean_face.copy_(to_normalized(torch.from_numpy(points), 48))
    path = tmp_path_factory.mktemp("weights") / "untrained.pth"
    save_checkpoint(path, Checkpoint(architecture, network.state_dict(), EMOTIONS, 48))
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port, **headers):
    """Return the response of a server on this machine."""
    request = Request(f"http://127.0.0.1:{port}/", headers=headers)
    return build_opener(ProxyHandler({})).open(request, timeout=10)


@contextmanager
def running(weights, folder, **variables):
    """Start demo.py, and yield its process and port once it serves the page."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    port, out = free_port(), folder / "out.txt"
    command = [sys.executable, ROOT / "demo.py", "--model_path", weights, "--port", port]
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **variables}
    with open(out, "w") as file:
        process = subprocess.Popen(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        for _ in range(600):
            if f"http://127.0.0.1:{port}" in out.read_text():
                break
            assert process.poll() is None, out.read_text()
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running(weights, folder) as (_, port):
        yield port
    assert "Traceback" not in (folder / "out.txt").read_text()
    [own] = folder.glob("fer-demo-*")  # the process was killed, so it is not removed
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if own not in path.parents] == [folder / "out.txt"]


@pytest.fixture(scope="module")
def browser(chromium):
    with chromium("--deny-permission-prompts") as browser:  # of a camera, if there is one
        yield browser


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as page:
        yield page


@contextmanager
def opened(browser, server):
    """Open the page; at the end, check that it has not requested anything from elsewhere."""
    page, urls, messages = browser.new_page(), [], []
    page.set_default_timeout(20_000)
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(f"uncaught {error}"))
    page.goto(f"http://127.0.0.1:{server}")
    page.get_by_text("will appear here").wait_for()
    yield page
    page.close()
    hosts = {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))}
    assert len(urls) > 10
    assert hosts == {f"127.0.0.1:{server}"}
    assert not [text for text in messages if "Content Security" in text or "uncaught" in text]


def upload(page, path):
    page.locator("input[type=file]").set_input_files(path)


def save(folder, name, image):
    path = folder / name
    Image.fromarray(image).save(path)
    return path


def cards(page, count):
    """Wait for the cards of `count` faces, and return title and {class: percent} of each."""
    page.locator(".face").nth(count - 1).wait_for()
    texts = page.locator(".face").all_inner_texts()
    assert len(texts) == count
    parts = [CARD.fullmatch(text).groups() for text in texts]
    return [(title, {n: int(p) for n, p in ROW.findall(rows)}) for title, rows in parts]


def percents(face):
    return {name: round(100 * float(p)) for name, p in zip(EMOTIONS, face.probabilities)}


def result(page):
    """Return the image that the page shows as its result: uint8 [H, W, 3] in RGB."""
    shown = page.locator("img[src*='image.webp']")
    shown.wait_for()
    assert shown.bounding_box()["width"] > 200
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 640
    bgr = cv2.imdecode(np.frombuffer(page.request.get(shown.get_attribute("src")).body(), "u1"), 1)
    return bgr[..., ::-1]


def test_the_page_shows_probabilities_and_the_annotated_photograph(page, weights, tmp_path):
    photograph = photographs.astronaut()
    upload(page, save(tmp_path, "astronaut.png", photograph))
    [(title, shown)] = cards(page, 1)
    [face] = FacePredictor(weights)(photograph)
    assert title == "Face"
    assert list(shown) == list(EMOTIONS)
    assert shown == percents(face)
    assert page.locator(".best").inner_text().startswith(face.expression)
    widths = page.locator(".bar i").evaluate_all("bars => bars.map(bar => bar.style.width)")
    wide = [float(width.removesuffix("%")) for width in widths]
    assert wide == pytest.approx(100 * face.probabilities, abs=0.06)

    image = result(page)
    plain = cv2.resize(photograph, (640, 640), interpolation=cv2.INTER_CUBIC)
    assert image.shape == plain.shape
    changed = np.abs(image.astype(int) - plain).max(2) > 60
    left, top, right, bottom = np.round(face.box * 1.25).astype(int)
    caption = image[top - 18 : top - 4, left + 4 : left + 80].astype(int)
    assert (np.abs(caption - BLUE).max(2) < 40).mean() > 0.4  # the rest is white letters
    assert changed[top : bottom + 1, (left, right)].mean() > 0.5  # the box's sides
    x, y = np.round((face.landmarks + 0.5) * 1.25 - 0.5).astype(int).T
    assert changed[y, x].mean() > 0.5
    assert changed[bottom + 20 :].mean() < 0.01  # nothing where there is no face


def test_explanations_can_be_switched_on_and_off(page, weights, tmp_path):
    photograph = photographs.astronaut()
    upload(page, save(tmp_path, "astronaut.png", photograph))
    cards(page, 1)
    plain = result(page).astype(int)
    page.get_by_label("Explain the predictions").check()
    page.get_by_text("contributions to its logit").wait_for()
    [face] = FacePredictor(weights, explain=True)(photograph)
    text = page.locator(".face").inner_text()
    assert f"Why {face.expression}: contributions to its logit of" in text
    for name, value in (face.explanation.parts | {"bias": face.explanation.bias}).items():
        assert re.search(rf"{name}\s+{re.escape(f'{value:+.2f}')}", text), name
    [(_, shown)] = cards(page, 1)
    assert shown == percents(face)
    left, top, right, bottom = np.round(face.box * 1.25).astype(int)
    with_heat = result(page).astype(int)
    changed = np.abs(with_heat - plain).max(2) > 20
    assert changed[top:bottom, left:right].mean() > 0.3
    assert changed[bottom + 60 :].mean() < 0.01
    page.get_by_label("Explain the predictions").uncheck()
    page.get_by_text("contributions to its logit").wait_for(state="detached")


def test_each_of_several_faces_has_a_card(page, weights, tmp_path):
    head = photographs.astronaut()[:250, 100:350]
    both = np.hstack([head, np.pad(cv2.resize(head, (200, 200)), ((0, 50), (0, 0), (0, 0)))])
    upload(page, save(tmp_path, "both.png", both))
    shown = cards(page, 2)
    faces = FacePredictor(weights)(both)
    assert shown == [("Face 1", percents(faces[0])), ("Face 2", percents(faces[1]))]


def test_an_example_is_predicted_as_one_face(page, weights, tmp_path):
    box = page.get_by_label("tightly cropped")
    assert not box.is_checked()
    page.locator(".gallery-item").nth(EMOTIONS.index("fear")).click()
    [(_, shown)] = cards(page, 1)
    assert box.is_checked()
    example = demo_page.write_examples(tmp_path)[EMOTIONS.index("fear")]
    [face] = FacePredictor(weights, cropped=True)(cv2.imread(example)[..., ::-1])
    assert shown == percents(face)
    image = result(page)
    assert (image[:20, -20:] > 240).all()  # the band for the caption above the face
    assert image.shape[0] > image.shape[1] == 640
    page.get_by_label("Remove Image").click()
    page.get_by_text("will appear here").wait_for()
    page.wait_for_function("!document.querySelector('input[type=checkbox]').checked")
    assert page.locator("img[src*='image.webp']").count() == 0


def open_camera(page):
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()


def test_an_image_of_the_camera(chromium, server, weights, tmp_path):
    film, still = tmp_path / "film.mjpeg", cv2.resize(photographs.astronaut(), (640, 640))[:480]
    _, content = cv2.imencode(".jpg", still[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    film.write_bytes(content)
    flags = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    flags += (f"--use-file-for-fake-video-capture={film}",)
    with chromium(*flags) as browser, opened(browser, server) as page:
        open_camera(page)
        page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
        page.get_by_label("capture photo").click()
        [(title, shown)] = cards(page, 1)
        image = result(page)
    assert title == "Face"
    mirrored = still[:, ::-1]  # as in a mirror
    [face] = FacePredictor(weights)(mirrored)
    assert shown == pytest.approx(percents(face), abs=3)  # the browser converts the colors
    assert np.abs(image.astype(int) - mirrored).mean() < 20
    assert np.abs(image.astype(int) - still).mean() > 40


def test_a_camera_without_permission_is_reported(browser, server, tmp_path):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server}")
    open_camera(page)
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == demo_page.NO_CAMERA
    page.get_by_label("Upload file").click()  # still possible
    upload(page, save(tmp_path, "astronaut.png", photographs.astronaut()))
    cards(page, 1)
    assert page.get_by_role("alert").count() == 0
    page.close()


def test_an_image_without_a_face_is_reported(page, tmp_path):
    ramp = np.tile(np.linspace(0, 255, 300).astype(np.uint8), (200, 1))
    upload(page, save(tmp_path, "ramp.png", ramp))
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == demo_page.NO_FACE
    assert page.locator(".face").count() == 0
    page.get_by_label("tightly cropped").check()
    assert len(cards(page, 1)[0][1]) == 7
    assert page.get_by_role("alert").count() == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.png", "notes.png cannot be read as an image"),
        ("cut.jpg", "cut.jpg cannot be read as an image (image file is truncated"),
        ("bomb.png", "bomb.png is too large (10000 x 9000 pixels"),
        ("<b>.png", "<b>.png cannot be read as an image"),
        ("heavy.png", "exceed the maximum allowed size of 20"),
        ("notes.txt", "Only image/* allowed"),
    ],
)
def test_an_unreadable_file_is_reported(page, tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(b"no image" if name != "heavy.png" else bytes(21 << 20))
    if name == "cut.jpg":
        Image.fromarray(photographs.astronaut()).save(path)
        path.write_bytes(path.read_bytes()[:9000])
    if name == "bomb.png":
        Image.new("1", (10_000, 9_000)).save(path)
    upload(page, path)
    page.get_by_text(text).first.wait_for()
    everything = page.locator("body").inner_text()
    assert text in everything
    assert "Traceback" not in everything
    assert "fer-demo-" not in everything  # the path of the upload is not shown
    assert page.locator(".face").count() == 0


def test_the_server_is_only_reachable_from_this_machine(server):
    with get(server) as answer:
        assert demo_page.TITLE in answer.read().decode()
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(OSError, match="Bad Request"):
        get(
            server, Host="elsewhere.example"
        )  # a page from elsewhere whose name resolves to this machine
    with pytest.raises(OSError, match="refused|timed out|unreachable|assign"):
        socket.create_connection(
            ("127.0.0.2", server), timeout=5
        )  # would work if it listened on all addresses


def test_a_port_in_use_is_reported(server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--port", str(server)])
    with pytest.raises(SystemExit, match="2"):
        run_main(demo.main)
    text = f"error: port {server}: address already in use; give another --port\n"
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--port", "70000"), "--port 70000: give 1 to 65535"),
        (("--model_path", "none.pth"), "none.pth: no such weight file; train one"),
    ],
)
def test_wrong_options_are_reported(monkeypatch, argv, text):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--port", str(free_port()), *argv])
    with pytest.raises(ProjectError, match=text):
        demo.main()


def test_without_gradio_the_requirement_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ProjectError, match="^the demo needs gradio; run `pip install -r"):
        demo.main()


def test_importing_the_demo_has_no_side_effects(tmp_path):
    code = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "import demo\n"
        "assert not {'gradio', 'torch'} & set(sys.modules), 'imported'\n"
        "assert {k: v for k, v in os.environ.items() if k not in before} == {}\n"
        "assert before.get('no_proxy') == os.environ.get('no_proxy')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)


def test_ctrl_c_removes_all_files_also_with_a_proxy(weights, tmp_path):
    proxy = f"http://127.0.0.1:{free_port()}"
    with running(weights, tmp_path, http_proxy=proxy, ALL_PROXY=proxy) as (process, _):
        [folder] = tmp_path.glob("fer-demo-*")
        assert len(list(folder.glob("*.png"))) == len(EMOTIONS)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert not folder.exists()
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[1:] == ["", "interrupted"]


def test_only_the_largest_of_many_faces_have_bars():
    probabilities = np.full(2, 0.5, np.float32)
    face = Face(np.zeros(4, np.float32), 1.0, "<a>", probabilities, 0.5, None)
    text = demo_page.cards([face] * 14, ("<a>", "b"))
    assert text.count('class="face"') == 12
    assert "Face 12" in text
    assert "And 2 more" in text
    assert "<a>" not in text
    assert "more" not in demo_page.cards([face] * 12, ("<a>", "b"))


def test_results_have_a_size_that_is_visible_and_quick_to_send():
    large, small = np.zeros((3200, 800, 3), np.uint8), np.zeros((1, 64, 3), np.uint8)
    assert annotate_resized(large, [], demo_page.RESULT_SIDES).shape == (1600, 400, 3)
    assert annotate_resized(small, [], demo_page.RESULT_SIDES).shape == (10, 640, 3)
