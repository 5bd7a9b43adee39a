"""Checkpoints: weights that carry all that their use needs, read without running code."""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from models.network import Architecture, FERNet
from models.original import convert_original, is_original
from utils.errors import OptionError, WeightsError
from utils.files import atomic_write

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a weight file holds.

    Attributes:
        architecture: of the network.
        net: the weights to use (the averaged ones where there is an average), with the
            network's normalisation and mean face.
        class_names: in the order of the logits.
        image_width: the face's side in pixels that it was trained on.
        epoch: the last finished epoch.
        options: the options of the run, as a dict.
        scores: the metrics of that epoch by name.
        card: of a release, what its users should know, in Markdown.
        training: what a resumed run needs besides (`State.for_resume`); empty in best.pth.
    """

    architecture: Architecture
    net: dict[str, torch.Tensor]
    class_names: tuple[str, ...]
    image_width: int
    epoch: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    card: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of the faces that it was trained on: 1 for grey, where the network may still take 3."""
        return min(self.options.get("channels", 3), self.architecture.channels)

    def network(self) -> FERNet:
        """Build the network with these weights, in evaluation mode on the CPU.

        Raises:
            WeightsError: the weights do not fit the architecture that the file names.
        """
        try:
            network = FERNet(self.architecture)
            network.load_state_dict(self.net)
        except (OptionError, RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(
                f"these weights do not fit their own architecture: {reason}"
            ) from error
        return network.eval().to(memory_format=torch.channels_last)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    content = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    content |= {
        "format": FORMAT,
        "architecture": asdict(checkpoint.architecture),
        "class_names": list(checkpoint.class_names),
    }
    packed = io.BytesIO()  # written in one go, as torch.save gives no reason for a failed write
    torch.save(content, packed)
    with atomic_write(path) as partial:
        partial.write_bytes(packed.getbuffer())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this project, or the original method's released weights.

    Only tensors and plain values are read: a file with pickled code is refused unread.

    Raises:
        WeightsError: no such file, a damaged one, pickled code, or another program's weights.
    """
    path = Path(path)
    content = _read(path)
    if is_original(content):
        return Checkpoint(**convert_original(content, path))
    if not isinstance(content, dict) or "format" not in content:
        raise WeightsError(
            f"{path} holds no weights of this project; bring a best.pth or last.pth that train.py "
            "wrote, or the original method's resnet18.pth"
        )
    if content["format"] != FORMAT:
        raise WeightsError(
            f"{path} has format {content['format']}, and this version reads format {FORMAT}; "
            "use the version of this repository that wrote it"
        )
    try:
        known = {f.name: content[f.name] for f in fields(Checkpoint) if f.name != "card"}
        known["card"] = content.get("card", "")  # which files had not from the start
        known["architecture"] = Architecture(**known["architecture"])
        known["class_names"] = tuple(known["class_names"])
        if known["options"].get("channels", 3) not in (1, 3):
            raise TypeError("channels")
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is incomplete ({error}); copy it again") from error
    return Checkpoint(**known)


def transfer(
    checkpoint: Checkpoint, wanted: Architecture, path: str | Path
) -> tuple[FERNet, list[str]]:
    """Build the wanted network, starting from the weights of a checkpoint.

    The input's channels and the pooling are the checkpoint's. A head that only
    the wanted network has starts afresh; one that only the checkpoint has is left out.

    Returns:
        The network, and the names of the heads that start afresh.

    Raises:
        WeightsError: another trunk, width, or number of classes or landmarks, each named, or
            weights that lack some, or do not fit their own architecture.
    """
    theirs = checkpoint.architecture
    differ = [
        f"{name} is {getattr(theirs, name)} there and {getattr(wanted, name)} here"
        for name in ("trunk", "width", "classes", "landmark_num")
        if getattr(theirs, name) != getattr(wanted, name)
        and not (name == "landmark_num" and 0 in (theirs.landmark_num, wanted.landmark_num))
    ]
    if theirs.landmark_pool and not wanted.landmark_pool:  # its classifier reads those features
        differ.append("landmark_pool is True there and False here")
    if differ:
        raise WeightsError(
            f"{path} holds another network: {'; '.join(differ)}. Give the run its options"
        )
    network = FERNet(replace(wanted, channels=theirs.channels, pool=theirs.pool))
    try:
        checkpoint.network()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    ours = network.state_dict()
    known = {key: value for key, value in checkpoint.net.items() if key in ours}
    if theirs.landmark_num != wanted.landmark_num:
        known.pop("mean_face", None)
    missing = network.load_state_dict(known, strict=False).missing_keys
    return network, sorted({key.split(".")[0] for key in missing} - {"mean_face"})


def _read(path: Path) -> Any:
    if (path / "best.pth").is_file():
        raise WeightsError(f"{path} is a folder; name the weights in it: {path / 'best.pth'}")
    if not path.is_file():
        raise WeightsError(
            f"there is no weight file {path}; train one with `bash train.sh`, "
            "or name one that is there"
        )
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # strangers' bytes may fail anywhere inside the reader
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise WeightsError(
                f"{path} holds pickled code, which could do anything to this machine, "
                "so it was not read; ask its author for weights saved as plain tensors"
            ) from error
        if str(path).endswith(".onnx"):
            raise WeightsError(f"{path} is an ONNX model; name its weights") from error
        raise WeightsError(
            f"{path} is damaged or no weight file; copy or download it again"
        ) from error


def _check_sums(path: Path) -> None:
    """Raise ValueError where a byte of the file has changed, which torch.load does not notice."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("torch.save compresses nothing")
        if name := archive.testzip():
            raise ValueError(f"{name} has changed")
