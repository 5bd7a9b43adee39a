"""The static web page: the network in a browser, without a server.

`write_page` copies `web/`, and adds the network and ONNX Runtime Web, from the npm registry.
`web/detector.onnx` is Tiny Face Detector of npm's @vladmandic/face-api 1.7.15 (MIT license), a
small YOLOv2: uint8 [1, H, W, 4] in RGBA, H and W multiples of 32, to five anchors per cell of 32
pixels, [1, H/32, W/32, 25]: x, y, log width, log height and score. Commit b1d88ea converted it.
"""

import base64
import hashlib
import json
import os
import tarfile
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import onnx
from onnx import helper, numpy_helper

from inference import detector, onnx_export
from models.checkpoint import Checkpoint
from utils.coordinates import to_pixels
from utils.errors import RunError, WeightsError
from utils.files import atomic_write

SOURCE = Path(__file__).resolve().parents[1] / "web"
# The page has one script: app.js and face.js joined, without this line.
IMPORT = b'import { Tracker, hasSimd, loadPredictor } from "./face.js";\n'
MIN_COMPRESSED = 1000  # values; smaller weights stay in 32 bits
TIMEOUT = 60.0  # seconds without an answer
REGISTRY = "https://registry.npmjs.org"
PACKAGE = "onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
INTEGRITY = (  # SHA-512 in the npm registry
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
FILES = {  # some servers do not know the suffix .mjs
    "dist/ort.wasm.min.mjs": "ort.js",
    "dist/ort-wasm-simd-threaded.mjs": "ort-wasm.js",
    "dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
}


def write_page(checkpoint: Checkpoint, folder: Path) -> dict[str, int]:
    """Write the page, and return the size of each file in bytes.

    The network's weights are stored in 8 bits, and computed with in 32 bits.

    Args:
        checkpoint: The weights, which need the landmark task.
        folder: Files of the same names are overwritten.

    Raises:
        WeightsError: The network predicts no landmarks.
        RunError: The package cannot be downloaded, or the folder cannot be written.
    """
    if not checkpoint.architecture.landmarks:
        raise WeightsError("the page needs landmarks; give weights trained with --landmarks")
    files = {path.name: path.read_bytes() for path in SOURCE.iterdir() if path.is_file()}
    files |= download_runtime()
    network, mean_face = onnx_export.to_onnx(checkpoint), checkpoint.net["mean_face"]
    files["app.js"] = files.pop("face.js") + files["app.js"].replace(IMPORT, b"")
    files["model.onnx"] = compress_weights(network).SerializeToString()
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


def download_runtime() -> dict[str, bytes]:
    """Download ONNX Runtime Web, and return its `FILES` by new name."""
    registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112  (npm's name)
    address = f"{registry.rstrip('/')}/{PACKAGE}"
    try:
        with urlopen(address, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, ValueError, HTTPException) as error:
        raise RunError(
            f"{address} cannot be downloaded ({error}); check the network, or name a mirror of "
            "npm's registry in the environment variable npm_config_registry"
        ) from error
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise RunError(f"{address} differs from npm's package; use another registry")
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        return {name: archive.extractfile(f"package/{path}").read() for path, name in FILES.items()}


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
