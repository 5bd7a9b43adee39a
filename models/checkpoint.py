"""Checkpoints: weights with all that their use needs, loaded without running code."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.fernet import Architecture, FERNet
from models.legacy import convert_original, upgrade
from models.mirror import fold
from utils.coordinates import to_pixels
from utils.errors import OptionError, WeightsError
from utils.files import atomic_write
from utils.validation import validate_types

FORMAT = 2  # 1 has the names of earlier versions


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weight file."""

    architecture: Architecture
    net: dict[str, torch.Tensor]  # the EMA's weights, with normalization and mean face
    class_names: tuple[str, ...]  # in the order of the logits
    image_width: int  # in pixels
    epoch: int = 0  # finished epochs
    options: dict[str, Any] = field(default_factory=dict)  # of the run
    path: str = ""  # of the file, for messages
    card: str = ""  # model card of a release, in Markdown
    temperature: float = 1.0  # by which `network` divides the logits (Guo et al., ICML 2017)
    unsure_below: float = 0.0  # probability below which at most half are right
    # What resuming needs besides (`TrainingState.state_dict`); empty in best.pth.
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of the images it was trained on: 1 for grayscale, even if the network has 3."""
        return min(self.options.get("channels", 3), self.architecture.channels)

    def mean_face(self) -> np.ndarray | None:
        """Return the mean landmarks [68, 2] in pixels; None without a landmark head."""
        if not self.architecture.landmarks:
            return None
        return to_pixels(self.net["mean_face"].float(), self.image_width).numpy()

    def initial_options(self) -> dict[str, Any]:
        """Return the options of a run that starts from these weights, as far as they have them."""
        names = ("backbone", "width", "landmark_pool", "landmarks", "importance")
        names += ("downsample", "mirror", "stem")
        options = {name: getattr(self.architecture, name) for name in names}
        return options | {"channels": self.channels, "image_width": (self.image_width,)}

    def network(self) -> FERNet:
        """Build the network for evaluation with these weights, on the CPU.

        The temperature is part of its classifier, and mirrored layers are folded (`fold`).
        """
        try:
            network = FERNet(self.architecture)
            network.load_state_dict(self.net)
            if self.temperature != 1:
                for parameter in network.classifier.parameters():
                    parameter.data /= self.temperature
        except OptionError as error:  # such as a missing requirement
            raise WeightsError(f"{self.path}: its network cannot be built: {error}") from error
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()
            fault = f"{self.path}: the weights do not fit their architecture ({reason})"
            raise WeightsError(f"{fault}; copy the file again") from error
        return fold(network.eval()).to(memory_format=torch.channels_last)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    content = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    del content["path"]
    content["architecture"] = asdict(checkpoint.architecture)
    content |= {"format": FORMAT, "class_names": list(checkpoint.class_names)}
    packed = io.BytesIO()  # torch.save gives no reason for a failed write
    torch.save(content, packed)
    with atomic_write(path) as partial:
        partial.write_bytes(packed.getbuffer())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a checkpoint of this project, or RainbowRui's weights.

    Only tensors and plain values are loaded; a file with pickled code is refused.

    Raises:
        WeightsError: The file is missing, damaged, has pickled code, or is another program's.
    """
    path = Path(path)
    content = load_file(path)
    if original := convert_original(content, path):
        return Checkpoint(**original, path=str(path))
    if not isinstance(content, dict) or "format" not in content:
        raise WeightsError(
            f"{path} has no weights of this project; give a best.pth or last.pth of train.py, or "
            "RainbowRui's resnet18.pth"
        )
    if content["format"] not in (1, FORMAT):
        raise WeightsError(
            f"{path} has format {content['format']}, and this version supports formats 1 to "
            f"{FORMAT}; use the version of this repository that wrote it"
        )
    try:
        if content["format"] == 1:
            content = upgrade(content)
        content = {"temperature": 1.0, "unsure_below": 0.0} | content  # missing in older files
        content["path"] = str(path)
        values = {f.name: content[f.name] for f in fields(Checkpoint)}
        values["architecture"] = Architecture(**values["architecture"])
        validate_types(vars(values["architecture"]), Architecture)
        values["class_names"] = tuple(values["class_names"])
        if len(values["class_names"]) != values["architecture"].classes:
            raise TypeError("class_names")
        if values["options"].get("channels", 3) not in (1, 3):
            raise TypeError("channels")
    except (KeyError, TypeError, AttributeError, OptionError) as error:
        raise WeightsError(f"{path} is incomplete ({error}); copy it again") from error
    return Checkpoint(**values)


def transfer(
    checkpoint: Checkpoint, new: Architecture, classes: Mapping[int, int]
) -> tuple[FERNet, set[str], set[str]]:
    """Build a network with the weights of a checkpoint.

    A layer that only the new network has is newly initialized; one that only the checkpoint has is
    left out.

    Args:
        checkpoint: The weights.
        new: The checkpoint's architecture with other classes, heads or dropout.
        classes: By index of a new class, the index of the checkpoint's class whose row of the
            classifier it gets. The other rows are newly initialized.

    Returns:
        The network, and the names of its modules with kept and with new weights, apart from the
        classifier.

    Raises:
        WeightsError: The weights do not fit their architecture.
    """
    checkpoint.network()  # checks the weights
    network = FERNet(new)
    state = network.state_dict()
    shared = {key: value for key, value in checkpoint.net.items() if key in state}
    rows, sources = list(classes), list(classes.values())
    for key in ("classifier.weight", "classifier.bias"):
        shared[key] = state[key].clone()
        shared[key][rows] = checkpoint.net[key][sources].to(state[key].dtype)
    if checkpoint.architecture.landmarks != new.landmarks:
        shared.pop("mean_face", None)
    missing = network.load_state_dict(shared, strict=False).missing_keys
    kept, new_modules = ({k.split(".")[0] for k in keys if "." in k} for keys in (shared, missing))
    return network, kept - {"classifier"}, new_modules


def load_file(path: Path) -> Any:
    """Return the content of a weight file, of which only tensors and plain values are loaded."""
    if (path / "best.pth").is_file():
        raise WeightsError(f"{path} is a folder; give the weights in it: {path / 'best.pth'}")
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weight file; train one with `bash train.sh`, or give another path"
        )
    try:
        if zipfile.is_zipfile(path):
            _verify_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # an untrusted file may fail anywhere inside the reader
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise WeightsError(
                f"{path} has pickled code, which could run anything, so it was not loaded; ask "
                "its author for weights saved as plain tensors"
            ) from error
        if str(path).endswith(".onnx"):
            raise WeightsError(f"{path} is an ONNX model; give its .pth weights") from error
        raise WeightsError(
            f"{path} is damaged or not a weight file; copy or download it again"
        ) from error


def _verify_checksums(path: Path) -> None:
    """Raise ValueError if a byte of the file has changed, which torch.load does not notice."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("torch.save does not compress")
        if name := archive.testzip():
            raise ValueError(f"{name} has changed")
