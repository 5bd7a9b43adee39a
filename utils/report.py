"""The evaluation of a network as it is left in a run folder: numbers, predictions, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from utils import figures, metrics
from utils.run import RunFolder

UNKNOWN = -1  # the label of a face that has none
FACES_DRAWN = 14  # with landmarks
FACES_RANKED = 12  # most and least important


@dataclass(frozen=True)
class Evaluation:
    """What is known and what was predicted of N faces.

    Attributes:
        class_names: C names.
        rows: int [N], the faces' rows in their set, counted from 0.
        usage: str [N].
        images: uint8 [N, W, W] or [N, W, W, 3].
        labels: int [N], UNKNOWN where there is none.
        landmarks: true ones, float [N, 68, 2] in pixels, NaN where unknown; or None.
        duplicates: bool [N], the faces whose pixels also stand among the Training
            faces; None where these were not at hand to tell.
        probabilities: float [N, C].
        importance: float [N].
        predicted_landmarks: float [N, 68, 2] in pixels, or None.
        label_kind: "FER+" where the labels are those; the scores say so, for they are not to
            be compared with others. Empty otherwise.
    """

    class_names: tuple[str, ...]
    rows: np.ndarray
    usage: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    landmarks: np.ndarray | None
    duplicates: np.ndarray | None
    probabilities: np.ndarray
    importance: np.ndarray
    predicted_landmarks: np.ndarray | None
    label_kind: str = ""

    @property
    def predicted(self) -> np.ndarray:
        """int [N]: the most probable classes."""
        return self.probabilities.argmax(1)

    def scores(self) -> dict[str, dict[str, Any]]:
        """Score each usage on its own.

        Returns:
            For each usage the figures of `metrics.score`, auroc_importance, and
            accuracy_without_duplicates, duplicates (how many) and landmark_error
            (pixels), each None where it cannot be told. A usage without labels
            has n = 0 and the number of unlabelled faces.
        """
        return {
            name: self._score(self.usage == name) for name in dict.fromkeys(self.usage.tolist())
        }

    def _score(self, mine: np.ndarray) -> dict[str, Any]:
        labelled = mine & (self.labels != UNKNOWN)
        if not labelled.any():
            return {"n": 0, "unlabelled": int(mine.sum())}
        result = metrics.score(
            self.labels[labelled], self.probabilities[labelled], self.class_names
        )
        right = self.predicted[labelled] == self.labels[labelled]
        result["auroc_importance"] = metrics.tells_right(self.importance[labelled], right)
        extra = dict.fromkeys(("accuracy_without_duplicates", "duplicates", "landmark_error"))
        if self.duplicates is not None:
            unique = labelled & ~self.duplicates
            extra["duplicates"] = int((labelled & self.duplicates).sum())
            extra["accuracy_without_duplicates"] = metrics.accuracy(
                self.labels[unique], self.probabilities[unique]
            )
        if self.landmarks is not None and self.predicted_landmarks is not None:
            extra["landmark_error"] = metrics.landmark_error(
                self.predicted_landmarks[mine], self.landmarks[mine]
            )
        marked = {"labels": self.label_kind} if self.label_kind else {}
        return marked | result | extra

    def write(
        self, run: RunFolder, title: str, more: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Leave metrics.json, predictions.csv and the figures in the run folder.

        The figures show the last usage, the one that is reported; `more` is added to
        metrics.json.

        Returns:
            The scores.
        """
        scores = self.scores()
        self._write_predictions(run)
        last = self.usage == self.usage[-1]
        self._write_figures(run, np.flatnonzero(last), f"{title}, {self.usage[-1]}")
        run.write_json("metrics.json", scores | (more or {}))  # last: where it is, all is
        return scores

    def _write_predictions(self, run: RunFolder) -> None:
        names = np.array([*self.class_names, ""])  # UNKNOWN is -1: the last
        faces = {
            "index": self.rows,
            "usage": self.usage,
            "label": names[self.labels],
            "predicted": names[self.predicted],
            "importance": self.importance,
        }
        shares = pd.DataFrame(self.probabilities, columns=self.class_names)
        table = pd.concat([pd.DataFrame(faces), shares], axis="columns")
        run.write_csv("predictions.csv", table.round(6))

    def _write_figures(self, run: RunFolder, of: np.ndarray, title: str) -> None:
        labelled = of[self.labels[of] != UNKNOWN]
        if len(labelled):
            counts = metrics.confusion(self.labels[labelled], self.probabilities[labelled])
            accuracy = 100 * metrics.accuracy(self.labels[labelled], self.probabilities[labelled])
            figure = figures.confusion_matrix(
                counts, self.class_names, f"{title}\n{accuracy:.2f} % of {len(labelled)} faces"
            )
            run.write_figure("confusion_matrix.png", figure)
            bins = metrics.reliability(self.labels[labelled], self.probabilities[labelled])
            error = metrics.expected_calibration_error(
                self.labels[labelled], self.probabilities[labelled]
            )
            run.write_figure("reliability.png", figures.reliability(bins, error, title))
            if np.ptp(self.importance[labelled]) > 0:
                by_class = {
                    self.class_names[c]: self.importance[labelled][self.labels[labelled] == c]
                    for c in np.unique(self.labels[labelled])
                }
                figure = figures.importance_by_class(by_class, f"{title}: importance by label")
                run.write_figure("importance_by_class.png", figure)
        if self.predicted_landmarks is not None:
            some = of[_by_turns(self.predicted[of], FACES_DRAWN)]
            true = None if self.landmarks is None else self.landmarks[some]
            figure = figures.landmark_faces(
                self.images[some],
                {"true": true, "predicted": self.predicted_landmarks[some]},
                self._captions(some),
                f"{title}: landmarks",
            )
            run.write_figure("landmarks.png", figure)
        order = of[self.importance[of].argsort(kind="stable")]
        count = min(FACES_RANKED, len(of) // 2)
        if count and np.ptp(self.importance[of]) > 0:
            rows = {"most": order[::-1][:count], "least": order[:count]}
            parts = []
            for which, some in rows.items():
                named = zip(self._captions(some), self.importance[some])
                captions = [f"{text}\n{importance:.2f}" for text, importance in named]
                parts.append((f"{title}: the {which} important faces", self.images[some], captions))
            run.write_figure("importance.png", figures.galleries(parts))

    def _captions(self, which: Iterable[int]) -> list[str]:
        """Name the prediction of each face, and its label where that is another one."""
        texts = []
        for predicted, label in zip(self.predicted[which], self.labels[which]):
            text = self.class_names[predicted]
            if label not in (UNKNOWN, predicted):
                text += f"\n(label {self.class_names[label]})"
            texts.append(text)
        return texts


def summary(scores: dict[str, dict[str, Any]]) -> str:
    """Return the scores as a table to print, a line per usage."""
    head = ("n", "accuracy", "no dupl.", "balanced", "macro F1", "ECE", "landmarks")
    lines = [" " * 12 + "".join(f"{text:>11}" for text in head)]
    for name, s in scores.items():
        if "unlabelled" in s:
            lines.append(f"{name:12}{s['unlabelled']:>11}  faces without labels: no scores")
            continue
        shares = ("accuracy", "accuracy_without_duplicates", "balanced_accuracy", "macro_f1")
        cells = [str(s["n"])]
        cells += ["-" if s[key] is None else f"{100 * s[key]:.2f} %" for key in shares]
        cells += [f"{s['ece']:.3f}"]
        cells += ["-" if s["landmark_error"] is None else f"{s['landmark_error']:.2f} px"]
        lines.append(f"{name:12}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def _by_turns(classes: np.ndarray, n: int) -> np.ndarray:
    """Return up to n indices that take the classes by turns, first faces first."""
    queues = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    turns = [queue[i] for i in range(n) for queue in queues if i < len(queue)]
    return np.array(turns[:n], dtype=int)
