"""The run folder: everything that one run leaves, and enough to repeat it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from utils.errors import OptionError, RunError
from utils.files import atomic_write, partial_files

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "model_save"
RELEASED_WEIGHTS = RUNS / "resnet18.pth"  # the most accurate ones
PHOTO_WEIGHTS = RUNS / "resnet18_photos.pth"  # half as wide: films are read about twice as fast
LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # as some network drives are
LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in a folder that was only looked at


class RunFolder:
    """One folder for one run: config.json, metrics.csv, weights, figures, predictions.

    Within a `with` block it is locked: no other process works there.

    Attributes:
        path: of the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK)

    def __enter__(self) -> RunFolder:
        """Lock the folder, and remove the partial files of a process that was killed there.

        Raises:
            RunError: another process works in it, or it cannot be written.
        """
        try:
            self._lock.acquire(blocking=False)
            for file in partial_files(self.path):
                file.unlink(missing_ok=True)
        except Timeout as error:
            raise RunError(
                f"another process works in {self.path}; wait for its end, or name another --out "
                f"(if there is none any more, remove {self.path / LOCK})"
            ) from error
        except (NotImplementedError, OSError) as error:
            if isinstance(error, NotImplementedError) or error.errno in WITHOUT_LOCKS:
                print(f"warning: {self.path} is on a file system without locks", file=sys.stderr)
                return self
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}); name another folder"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    @classmethod
    def create(cls, out: str, name: str) -> RunFolder:
        """Make the folder `out`, or a new one of that time and name under model_save/.

        Raises:
            RunError: the folder holds something already, or cannot be made.
        """
        path = Path(out) if out else RUNS / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}"
        try:
            while not _make(path, exist_ok=bool(out)):  # two runs of one second
                path = path.with_name(path.name + "_")
            remnants = {LOCK, *LEFT_BY_SYSTEMS, *(file.name for file in partial_files(path))}
            if any(file.name not in remnants for file in path.iterdir()):
                raise RunError(
                    f"{path} holds files already, and they are not overwritten; name another --out"
                    + f", or go on with it: train.py --resume {path}"
                    * (path / "config.json").exists()
                )
        except OSError as error:
            raise RunError(
                f"the run folder {path} cannot be made ({error.strerror}); name another --out"
            ) from error
        return cls(path)

    @classmethod
    def reopen(cls, path: str) -> RunFolder:
        """Return the folder of an earlier run.

        Raises:
            RunError: no such run.
        """
        folder = cls(Path(path))
        if not (folder / "config.json").is_file():
            raise RunError(f"{path} holds no run (there is no config.json); name its folder")
        return folder

    @classmethod
    def to_resume(cls, resume: str, out: str) -> RunFolder | None:
        """Return the folder of the run to resume, or None for a new run.

        Args:
            resume: The option --resume.
            out: The option --out, which cannot move a run.

        Raises:
            RunError: There is no such run.
            OptionError: The options contradict each other.
        """
        if not resume:
            return None
        run = cls.reopen(resume)
        if out and Path(out).resolve() != run.path.resolve():
            raise OptionError(
                f"--out {out}: a resumed run stays in its folder, {run.path}; copy that folder and "
                "resume the copy"
            )
        return run

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_config(self, options: Mapping[str, Any], torch_version: str, is_new: bool) -> None:
        """Write config.json: the options, and the versions of PyTorch and of this repository.

        For a resumed run it keeps the versions that the run began with, and adds the current ones
        where they differ.
        """
        versions = {"torch": torch_version, "commit": git_commit()}
        if is_new:
            self.write_json("config.json", {"options": options, **versions})
            return
        config = self.read_json("config.json")
        for name in (name for name, value in versions.items() if config.get(name) != value):
            print(
                f"note     Resumed with {name} {versions[name]} (the run began with {config.get(name)})"
            )
            config["resumed_with"] = versions
        self.write_json("config.json", config | {"options": options})

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        with atomic_write(self.path / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file.

        Raises:
            RunError: it is missing or damaged.
        """
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no names")
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read ({error}); start a new run") from error
        return content

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        """Write a table, whole or not at all; what is missing is left empty."""
        with atomic_write(self.path / name) as partial:
            table.to_csv(partial, index=False, lineterminator="\n")

    def write_figure(self, name: str, figure: Any) -> None:
        """Write a Matplotlib figure as PNG."""
        with atomic_write(self.path / name) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # that no font has: a box is drawn
            figure.savefig(partial, format="png", dpi=120, bbox_inches="tight")


def git_commit() -> str:
    """Return this repository's commit, with -dirty where its files differ; "" outside of Git."""
    git = ["git", "--no-optional-locks", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}"]
    command = [*git, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _make(path: Path, exist_ok: bool) -> bool:
    """Make a folder; return False where it is there already and must not be."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:  # it is a file
            raise
        return False
    return True
