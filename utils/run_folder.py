"""The run folder: config, metrics, weights, figures and predictions of one run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from utils.errors import OptionError, RunError
from utils.files import atomic_write, partial_files

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "model_save"
FER2013_WEIGHTS = RUNS / "resnet18.pth"  # the most accurate ones on FER2013's labels
FERPLUS_WEIGHTS = RUNS / "resnet18_ferplus.pth"  # for photographs and videos
LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # on some network drives
SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")  # file managers create them


class RunFolder:
    """The folder of one run.

    In a `with` block it is locked against other processes. If the block raises and nothing has
    been written, the folder is removed if it `is_new`, that is, was created for this object.
    """

    def __init__(self, path: Path, is_new: bool = False) -> None:
        self.path, self._is_new = path, is_new
        self._lock = FileLock(path / LOCK)

    def __enter__(self) -> RunFolder:
        """Lock the folder, and remove temporary files of a killed process."""
        try:
            self._lock.acquire(blocking=False)
            for file in partial_files(self.path):
                file.unlink(missing_ok=True)
        except Timeout as error:
            raise RunError(
                f"another process works in {self.path}; wait until it ends, or choose another "
                f"--out (if no process is left, remove {self.path / LOCK})"
            ) from error
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
                raise RunError(
                    f"{self.path} cannot be written ({error.strerror}); choose another folder"
                ) from error
            print(f"warning: {self.path} is on a file system without locks", file=sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._lock.release()
        with suppress(OSError):
            if kind and self._is_new and {file.name for file in self.path.iterdir()} <= {LOCK}:
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()

    @classmethod
    def create(cls, out: str, name: str, parent: Path | None = None) -> RunFolder:
        """Create a run folder; raise a RunError if it holds files, or cannot be created.

        It is `out`, which must be new or empty, or by default a new folder in `parent` (model_save/
        by default), named by the time and `name`.
        """
        new = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}"
        path = Path(out).expanduser() if out else (parent or RUNS) / new
        try:
            while path.exists() and not out:  # another run of the same second
                path = path.with_name(path.name + "_")
            is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            cls.check_out(path)
        except OSError as error:
            raise RunError(
                f"the run folder {path} cannot be made ({error.strerror}); choose another --out"
            ) from error
        return cls(path, is_new)

    @staticmethod
    def check_out(path: str | Path) -> None:
        """Raise a RunError if a path is a file, or a folder with files; "" is a new folder."""
        folder = Path(path).expanduser()
        if path and folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; give a folder with --out")
        allowed = {LOCK, *SYSTEM_FILES, *(file.name for file in partial_files(folder))}
        if path and folder.is_dir() and any(f.name not in allowed for f in folder.iterdir()):
            has_run = (folder / "config.json").exists()
            hint = f", or resume the run: train.py --resume {folder}" if has_run else ""
            raise RunError(f"{folder} holds files already; choose another --out{hint}")

    @classmethod
    def reopen(cls, path: str) -> RunFolder:
        """Return the folder of an earlier run; raise a RunError if there is none."""
        folder = cls(Path(path))
        if not (folder / "config.json").is_file():
            raise RunError(f"{path} holds no run (config.json is missing); give the run's folder")
        return folder

    @classmethod
    def to_resume(cls, resume: str, out: str) -> RunFolder | None:
        """Return the folder of the run that --resume names, or None for a new run."""
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

        A resumed run keeps the versions of its start. The current ones are added if they differ.
        Paths of the data set become absolute, so that the run can be resumed from any folder.
        """
        data = {name: options.get(name) for name in ("data", "ferplus", "ferplus_test")}
        paths = {name: os.path.expanduser(p) for name, p in data.items() if p and p != "sample"}
        paths = {name: os.path.abspath(p) for name, p in paths.items()}
        versions = {"torch": torch_version, "commit": git_commit()}
        config = {"options": {}} | versions if is_new else self.read_json("config.json")
        for name, version in versions.items():
            if (start := config.get(name)) != version:
                print(f"note     Resumed with {name} {version} (the run began with {start})")
                config["resumed_with"] = versions
        self.write_json("config.json", config | {"options": {**options, **paths}})

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, atomically."""
        with atomic_write(self.path / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file; raise a RunError if it is missing or damaged."""
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it has no keys")
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read ({error}); start a new run") from error
        return content

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        """Write a table, atomically; missing values are empty."""
        with atomic_write(self.path / name) as partial:
            table.to_csv(partial, index=False, lineterminator="\n")

    def read_csv(self, name: str) -> pd.DataFrame:
        """Read a table as it was written; class names may be numbers, or "NA"."""
        types = dict.fromkeys(("label", "predicted", "human_label", "from", "to"), str)
        return pd.read_csv(self.path / name, keep_default_na=False, dtype=types)

    def write_figure(self, name: str, figure: Any) -> None:
        """Write a Matplotlib figure as PNG, atomically."""
        from utils.figures import save_figure  # noqa: PLC0415  (Matplotlib takes a second to import)

        with atomic_write(self.path / name) as partial:
            save_figure(figure, partial)


def git_commit() -> str:
    """Return the commit of this repository, with -dirty for changed files; "" without Git."""
    git = ["git", "--no-optional-locks", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}"]
    command = [*git, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
