"""Entry points for torch.hub. PATH is the folder of this repository.

    predictor = torch.hub.load(PATH, "face_predictor", source="local")
    faces = predictor(image)                    # uint8 [H, W, 3] in RGB
    network = torch.hub.load(PATH, "resnet18_fer", source="local")
    output = network(pixels)                    # [N, 1, 48, 48], 0 to 255

Packages of the calling program called `data`, `models` or `utils` are not affected.
"""

# Whole modules, because torch.hub.list lists every callable here as an entry point.
import collections.abc
import contextlib
import pathlib
import sys
import types
import typing

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "pandas", "filelock", "tqdm"]
dependencies += ["joblib", "psutil"]

ROOT = pathlib.Path(__file__).resolve().parent
PACKAGES = ("data", "engine", "inference", "models", "tools", "utils")
RELEASED = ("resnet18", "resnet18_ferplus")


def face_predictor(weights: str = "resnet18_ferplus", **options: typing.Any) -> typing.Any:
    """Return a FacePredictor: predictor(image) gives the faces of an image. It cannot be pickled.

    Args:
        weights: A name in RELEASED, or the path of a .pth or .onnx file.
        options: Arguments of inference.predictor.FacePredictor, such as cropped=True.
    """
    with _import_from_repository():
        from inference.predictor import FacePredictor  # noqa: PLC0415

        return FacePredictor(_weight_path(weights), **options)


def resnet18_fer(pretrained: bool = True, weights: str = "resnet18") -> typing.Any:
    """Return the network, a models.fernet.FERNet in evaluation mode on the CPU.

    Its output has `logits` [N, C], `importance` [N, 1] and `landmarks` [N, 68, 2] in normalized
    coordinates. The probabilities, in the order of `network.class_names`, are the softmax of
    `weighted_logits`.

    Args:
        pretrained: Load the weights; else initialize a ResNet-18 randomly.
        weights: A name in RELEASED, or the path of a .pth file.
    """
    with _import_from_repository():
        from models.checkpoint import load_checkpoint  # noqa: PLC0415
        from models.fernet import Architecture, FERNet  # noqa: PLC0415
        from utils.classes import EMOTIONS  # noqa: PLC0415

        if pretrained:
            checkpoint = load_checkpoint(_weight_path(weights))
            network, class_names = checkpoint.network(), checkpoint.class_names
        else:
            network, class_names = FERNet(Architecture()).eval(), EMOTIONS
        network.class_names = tuple(class_names)
        return network


def _weight_path(weights: str) -> pathlib.Path:
    is_released = str(weights) in RELEASED
    return ROOT / "model_save" / f"{weights}.pth" if is_released else pathlib.Path(weights)


@contextlib.contextmanager
def _import_from_repository() -> collections.abc.Iterator[None]:
    """Import this repository's packages within the block, and restore the caller's after it."""
    callers, path = _loaded_modules(), sys.path.copy()
    files = [getattr(callers.get(name), "__file__", None) or "" for name in PACKAGES]
    if any(pathlib.Path(file).resolve().is_relative_to(ROOT) for file in files if file):
        yield  # the caller has imported this repository itself
        return
    for name in callers:
        del sys.modules[name]
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        for name in _loaded_modules():
            del sys.modules[name]
        sys.modules.update(callers)
        sys.path[:] = path


def _loaded_modules() -> dict[str, types.ModuleType]:
    """Return the loaded modules with the names of this repository's packages."""
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] in PACKAGES}
