"""The results of an evaluation in a run folder: metrics, predictions, figures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from data.dataset import UNLABELED, FaceDataset
from utils import image_grids, metrics, plots
from utils.predictions import Predictions
from utils.run_folder import RunFolder

NUM_LANDMARK_IMAGES = 14  # in landmarks.png
NUM_RANKED_IMAGES = 12  # in each row of importance.png


@dataclass(frozen=True)
class Evaluation:
    """Ground truth and predictions of N samples."""

    samples: FaceDataset
    predictions: Predictions
    rows: np.ndarray  # int [N], rows of the samples in the whole data set, counted from 0
    duplicates: np.ndarray | None  # bool [N]: pixels are also in Training; None without Training

    @property
    def predicted(self) -> np.ndarray:
        """int [N]: the most probable classes."""
        return self.predictions.probabilities.argmax(1)

    def scores(self) -> dict[str, dict[str, Any]]:
        """Compute the metrics of each split.

        Returns:
            By split: those of `metrics.score`, auroc_importance, accuracy_without_duplicates,
            duplicates (their number), and landmark_error (pixels), each None where undefined. A
            split without labels has n = 0 and the number of unlabeled images. With `human_labels`,
            also `metrics.human_agreement`, and auroc_importance_label: the AUROC of detecting
            labels that equal the human ones by the importance.
        """
        split = self.samples.split
        return {name: self._score(split == name) for name in pd.unique(split)}

    def _score(self, mask: np.ndarray) -> dict[str, Any]:
        labels, names = self.samples.labels, self.samples.class_names
        labeled = mask & (labels != UNLABELED)
        if not labeled.any():
            return {"n": 0, "unlabeled": int(mask.sum())}
        probabilities, importance, landmarks, *_ = self.predictions
        # The scores on FER+'s labels are not comparable with others.
        result = {} if self.samples.votes is None else {"labels": "FER+"}
        result |= metrics.score(labels[labeled], probabilities[labeled], names)
        correct = self.predicted[labeled] == labels[labeled]
        result["auroc_importance"] = metrics.correctness_auroc(importance[labeled], correct)
        result |= dict.fromkeys(("accuracy_without_duplicates", "duplicates", "landmark_error"))
        if self.duplicates is not None:
            unique = labeled & ~self.duplicates
            result["duplicates"] = int((labeled & self.duplicates).sum())
            accuracy = metrics.accuracy(labels[unique], probabilities[unique])
            result["accuracy_without_duplicates"] = accuracy
        if self.samples.landmarks is not None and landmarks is not None:
            error = metrics.landmark_error(landmarks[mask], self.samples.landmarks[mask])
            result["landmark_error"] = error
        if (human_labels := self.samples.human_labels) is not None:
            result |= metrics.human_agreement(human_labels[mask], self.predicted[mask], names)
            both = labeled & (human_labels != UNLABELED)
            result["auroc_importance_label"] = metrics.correctness_auroc(
                importance[both], labels[both] == human_labels[both]
            )
        return result

    def write(
        self, run: RunFolder, title: str, more: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Write metrics.json (scores, `more`), predictions.csv, and figures.

        The figures are those of the last split with labels, or of the last one.
        """
        scores, samples = self.scores(), self.samples
        names = np.array([*samples.class_names, ""])  # UNLABELED is -1: the last
        table = pd.DataFrame({"index": self.rows, "split": samples.split})
        table["label"], table["predicted"] = names[samples.labels], names[self.predicted]
        if samples.human_labels is not None:
            table["human_label"] = names[samples.human_labels]
        table["importance"] = self.predictions.importance
        probabilities = pd.DataFrame(self.predictions.probabilities, columns=samples.class_names)
        table = pd.concat([table, probabilities], axis="columns")
        run.write_csv("predictions.csv", table.round(6))
        labeled = samples.split[samples.labels != UNLABELED]
        last = (labeled if len(labeled) else samples.split)[-1]
        self._write_figures(run, np.flatnonzero(samples.split == last), f"{title}, {last}")
        run.write_json("metrics.json", scores | (more or {}))  # last: it marks a finished run
        return scores

    def _write_figures(self, run: RunFolder, rows: np.ndarray, title: str) -> None:
        images, importance = self.samples.images, self.predictions.importance
        labeled = rows[self.samples.labels[rows] != UNLABELED]
        if len(labeled):
            self._write_score_figures(run, labeled, title)
        if (landmarks := self.predictions.landmarks) is not None:
            classes = pd.Series(self.predicted[rows])
            place = classes.groupby(classes).cumcount()  # the first of each class, the second, ...
            shown = rows[np.lexsort((classes, place))[:NUM_LANDMARK_IMAGES]]
            truth = None if self.samples.landmarks is None else self.samples.landmarks[shown]
            points = {"ground truth": truth, "prediction": landmarks[shown]}
            figure = image_grids.plot_landmarks(
                images[shown], points, self._captions(shown), f"{title}: landmarks"
            )
            run.write_figure("landmarks.png", figure)
        order = rows[importance[rows].argsort(kind="stable")]
        count = min(NUM_RANKED_IMAGES, len(rows) // 2)
        if count and np.ptp(importance[rows]) > 0:
            grid_rows = []
            for which, shown in (("highest", order[::-1][:count]), ("lowest", order[:count])):
                pairs = zip(self._captions(shown), importance[shown])
                captions = [f"{text}\n{value:.2f}" for text, value in pairs]
                grid_rows.append((f"{title}: {which} importance", images[shown], captions))
            run.write_figure("importance.png", image_grids.plot_grid(grid_rows))

    def _write_score_figures(self, run: RunFolder, rows: np.ndarray, title: str) -> None:
        names, labels = self.samples.class_names, self.samples.labels[rows]
        probabilities, importance = (array[rows] for array in self.predictions[:2])
        counts = confusion_matrix(labels, self.predicted[rows], labels=range(len(names)))
        accuracy = 100 * metrics.accuracy(labels, probabilities)
        text = f"{title}\naccuracy {accuracy:.2f} %, n = {len(rows):,}"
        figure = plots.plot_confusion_matrix(counts, names, text)
        run.write_figure("confusion_matrix.png", figure)
        bins = metrics.reliability(labels, probabilities)
        error = metrics.expected_calibration_error(labels, probabilities)
        run.write_figure("reliability.png", plots.plot_reliability(bins, error, title))
        if np.ptp(importance) > 0:
            by_class = {names[c]: importance[labels == c] for c in np.unique(labels)}
            figure = plots.plot_importance_by_class(by_class, f"{title}: importance by label")
            run.write_figure("importance_by_class.png", figure)

    def _captions(self, rows: Iterable[int]) -> list[str]:
        """Return the prediction of each sample, and its label where they differ."""
        captions, names = [], self.samples.class_names
        for predicted, label in zip(self.predicted[rows], self.samples.labels[rows]):
            differs = label not in (UNLABELED, predicted)
            captions.append(names[predicted] + (f"\n(label {names[label]})" if differs else ""))
        return captions


def summary(scores: dict[str, dict[str, Any]]) -> str:
    """Return the scores as a table to print, one line per split."""
    head = ["n", "accuracy", "no dupl.", "balanced", "macro F1", "ECE"]
    has_landmarks = any(s.get("landmark_error") is not None for s in scores.values())
    head += ["landmarks"] if has_landmarks else []
    lines = [" " * 12 + "".join(f"{text:>11}" for text in head)]
    for name, s in scores.items():
        if "unlabeled" in s:
            lines.append(f"{name:12}{s['unlabeled']:>11}  images without labels: no scores")
            continue
        shares = ("accuracy", "accuracy_without_duplicates", "balanced_accuracy", "macro_f1")
        columns = [str(s["n"])]
        columns += ["-" if s[key] is None else f"{100 * s[key]:.2f} %" for key in shares]
        columns += [f"{s['ece']:.3f}"]
        if has_landmarks:
            columns += ["-" if s["landmark_error"] is None else f"{s['landmark_error']:.2f} px"]
        lines.append(f"{name:12}" + "".join(f"{column:>11}" for column in columns))
    for name, s in scores.items():
        if s.get("human_agreement") is not None:
            low, high = s["human_agreement_interval"]
            shares = s["human_agreement_by_class"].items()
            by_class = [f"{c} {100 * share:.0f}" for c, share in shares if share is not None]
            lines.append(
                f"human agreement on {name} (FER+ majority, n = {s['human_agreement_n']:,}): "
                f"{100 * s['human_agreement']:.2f} % (95 % interval {100 * low:.2f} to "
                f"{100 * high:.2f})\n            by class: {', '.join(by_class)} %"
            )
    return "\n".join(lines)
