"""Detect faces in photographs, videos or a camera, and predict their expressions.

    python predict.py photo.jpg holiday/ "*.png" film.mp4
    python predict.py 0 --out DIR                     the first camera, until Ctrl-C
    python predict.py faces/ --cropped                images of one face each, tightly cropped

Results go to a new folder predictions/TIME_predict in the current folder, or to --out DIR, which
must be new or empty: predictions.csv, predictions.json, annotated images and videos, plots of
videos.

Exit status: 0 success; 1 a missing path, or a full disk (earlier results are kept); 2 an invalid
option; 3 some inputs could not be read or have no face, as warned.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from inference.align import MAX_SHIFT
from inference.detector import DETECTION_SIZE, MIN_SCORE
from inference.inputs import find_all_inputs, is_video
from inference.predictor import FacePredictor
from inference.records import Records
from inference.results import Results, count_of, empty_record
from inference.runner import VIDEO_DETECTION_SIZE, InferenceRunner
from utils.cli import parse
from utils.errors import OptionError, run_main
from utils.files import printable
from utils.options import Count, Fraction, NonNegative
from utils.run_folder import FERPLUS_WEIGHTS, RunFolder


@dataclass(frozen=True)
class PredictOptions:
    """Options of predict.py."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Images, folders, patterns such as "*.jpg", videos, or the number of a camera."""
    model_path: str = str(FERPLUS_WEIGHTS)
    """Weights: a best.pth, the resnet18.pth of RainbowRui's repository, or an .onnx file of
    export.py."""
    out: str = ""
    """Folder of the results, new or empty. By default predictions/TIME_predict."""
    cropped: bool = False
    """Each image is one tightly cropped face; no faces are detected."""
    views: int = -1
    """Crops per face, aligned with the predicted landmarks, over which the probabilities are
    averaged. With 0, the prediction is that of the detector's crop. -1 is 1, but 0 for videos and
    --cropped."""
    max_shift: float = MAX_SHIFT
    """With --views 1 or more: leave out detections whose landmarks move by more than this fraction
    of the crop in the last alignment, because most are no faces; inf keeps all."""
    explain: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[CLASS]")] = None
    """Write contributions of facial parts to the logit of the predicted class, or of CLASS, and
    figures of them."""
    draw: bool = True
    """Write annotated images and videos."""
    min_confidence: Fraction = 0.0
    """Leave out faces with less confidence in their image or frame."""
    every: Count = 1
    """Process every N-th frame of a video."""
    smooth: NonNegative = 0.3
    """Time constant in seconds of the moving average of a face's probabilities; 0 is none."""
    detector: str = "dlib"
    """dlib, or the path of a CenterFace .onnx file, which finds small, turned and partly hidden
    faces, too (docs/inference.md)."""
    detection_size: int = 0
    """Longer side in pixels to which images are resized for the detection. Faces must be 80 pixels
    wide there; a larger size finds smaller faces and takes longer. 0 is 1000, but 640 for
    videos."""
    min_score: float = MIN_SCORE
    """Minimum score of a detected face; a lower one finds more faces, and more false detections.
    CenterFace's scores are from 0 to 1; dlib's have no limits."""
    batch_size: int = 64
    """Faces per step of the network."""
    threads: int = 0
    """CPU threads of the network; 0 is one per idle core (.pth) or one per core (.onnx)."""
    gpu_ids: str = ""
    """GPU, such as 0; -1 is the CPU. By default the first GPU, if there is one."""


def main() -> None:
    options = parse(PredictOptions, sys.argv[1:], __doc__)
    predictor = FacePredictor(
        options.model_path,
        cropped=options.cropped,
        detector=options.detector,
        detection_size=options.detection_size or DETECTION_SIZE,
        min_score=options.min_score,
        views=options.views,
        max_shift=options.max_shift,
        batch_size=options.batch_size,
        threads=options.threads,
        gpu_ids=options.gpu_ids,
    )
    predictor.explain, paths = explained_class(options, predictor.class_names)
    if not paths:
        raise OptionError("no input; give an image, a folder, a video or a camera's number")
    sources = find_all_inputs(paths)
    with (
        RunFolder.create(options.out, "predict", Path("predictions")) as run,
        Records(run.path, empty_record(predictor.class_names)) as records,
    ):
        results = Results(run, records, predictor.class_names, options.min_confidence)
        runner = InferenceRunner(
            predictor,
            results,
            draw=options.draw,
            every=options.every,
            smooth=options.smooth,
            detection_size=options.detection_size or VIDEO_DETECTION_SIZE,
            video_views=max(options.views, 0),
        )
        runner.predict_images([source for source in sources if not is_video(source)])
        for video in filter(is_video, sources):
            runner.predict_video(video)
    annotated = " and annotated files" if results.has_drawn else ""
    rows = count_of(results.num_faces, "record")
    print(f"Results: predictions.csv and .json ({rows}){annotated} in {printable(str(run.path))}")
    if runner.num_failed:
        counts = f"{runner.num_failed:,} of {len(sources):,} inputs"
        print(f"{counts} have no face or could not be read (see the warnings)")
        sys.exit(3)


def explained_class(
    options: PredictOptions, class_names: Sequence[str]
) -> tuple[bool | str, tuple[str, ...]]:
    """Return what to explain (as FacePredictor), and all inputs.

    A word after --explain is a class if the weights have such a class, and else an input.
    """
    if options.explain is None:
        return False, options.paths
    first, *_ = *options.explain, ""
    if first in class_names:
        return first, options.explain[1:] + options.paths
    if first.isalpha() and not Path(first).exists():
        raise OptionError(
            f"--explain {first} is neither an input nor a class of the weights, which are "
            f"{', '.join(class_names)}"
        )
    return True, options.explain + options.paths


if __name__ == "__main__":
    run_main(main)
