"""InferenceRunner: predictions of many images and videos, written to a folder."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import copy
from pathlib import Path

from data.readers.images import read_image
from inference.face import Face
from inference.pipeline import Item, predict_all
from inference.predictor import FacePredictor
from inference.results import Results, count_of, write_annotated
from inference.tracking import MIN_FRAMES, Track, Tracker
from inference.video import Camera, Frame, VideoFile
from inference.video_writer import VideoWriter
from inference.visualize import annotate
from utils.errors import DataError, ProjectError
from utils.files import printable
from utils.progress import print_line, progress_bar

MAX_LINES = 20  # images with a line each; more have one summary
VIDEO_DETECTION_SIZE = 640  # pixels, the longer side of a video's frames for the detection


class InferenceRunner:
    """Predicts images and videos, and prints and writes the results.

    Args:
        draw, every, smooth: As the options of predict.py.
        detection_size, video_views: The predictor's `detection_size` and `views` for videos.

    Attributes:
        num_failed: Number of inputs without a face, or with an error.
    """

    def __init__(
        self,
        predictor: FacePredictor,
        results: Results,
        *,
        draw: bool,
        every: int,
        smooth: float,
        detection_size: int,
        video_views: int,
    ) -> None:
        self.predictor, self.results, self.draw = predictor, results, draw
        self.video_predictor = copy(predictor)  # shares the network
        self.video_predictor.views = video_views
        self.video_predictor.detection_size = detection_size
        self.every, self.smooth = every, smooth
        self.num_failed = 0

    def predict_images(self, paths: Sequence[Path]) -> None:
        """Predict images, and print a line for each, or a summary of many."""
        results, expressions, num_images = self.results, Counter(), 0
        with (
            progress_bar(paths, "images", unit="image") as bar,
            closing(predict_all(self.predictor, self._detect_file, bar)) as predictions,
        ):
            for path, image, result, faces in predictions:
                if isinstance(result, ProjectError):
                    self.warn(str(result))
                    continue
                num_images += 1
                confident = results.select(faces)
                target = results.new_path(f"{path.stem}_faces.png") if self.draw else None
                for i, face in enumerate(confident):
                    results.write(face, i, path, target)
                if target:
                    write_annotated(target, image, confident)
                    results.has_drawn = True
                    if self.predictor.explain:
                        name = "_explanation".join(target.stem.rsplit("_faces", 1))
                        results.plot_explanations(image, confident, f"{name}.png")
                if not faces:
                    hint = "--cropped predicts the image as one face"
                    if len(result.boxes):
                        hint = "--max_shift inf keeps the detection that was left out"
                    self.warn(f"{path}: no face found; {hint}")
                elif len(paths) <= MAX_LINES:
                    parts = [count_of(len(confident), "face"), *(f.caption for f in confident)]
                    print_line(f"{printable(path.name)}: {', '.join(parts)}")
                expressions.update(face.expression for face in confident)
        if len(paths) > MAX_LINES:
            parts = [f"{count:,} {expression}" for expression, count in expressions.most_common()]
            parts = [count_of(expressions.total(), "face"), *parts]
            print_line(f"{count_of(num_images, 'image')}: {', '.join(parts)}")

    def predict_video(self, source: Path | int) -> None:
        """Predict the frames of a video, track its faces, and plot their expressions."""
        is_camera = isinstance(source, int)
        try:
            video = Camera(source) if is_camera else VideoFile(source)
        except DataError as error:
            self.warn(str(error))
            return
        name, rate = f"camera{source}" if is_camera else source.stem, video.rate / self.every
        target = self.results.new_path(f"{name}_faces.mp4") if self.draw else None
        total = -(-video.num_frames // self.every) or None
        min_frames = min(MIN_FRAMES, total or MIN_FRAMES)  # a shorter video has all of its faces
        tracker = Tracker(self.smooth, min_frames)
        max_waiting = 1 if is_camera else 16  # a camera's frames do not wait for others
        predictor = self.video_predictor
        writer, expressions, num_frames, has_faces, faults = None, Counter(), 0, False, []
        try:
            with (
                closing(video.frames(self.every)) as frames,
                progress_bar(frames, name, total=total, unit="frame") as bar,
                closing(predict_all(predictor, self._detect_frame, bar, max_waiting)) as items,
            ):
                for frame, image, _, faces in items:
                    if target and not writer:
                        try:
                            writer = VideoWriter(target, rate, image.shape[1::-1])
                            self.results.has_drawn = True
                        except DataError as error:  # the records are written all the same
                            faults, target = [str(error)], None
                    num_frames, has_faces = num_frames + 1, has_faces or bool(faces)
                    confirmed = {}
                    for track, face in self._track(tracker, faces, frame.time):
                        self.results.write(face, track.number, source, target, frame)
                        if tracker.is_confirmed(track):
                            confirmed[track.number] = face
                    expressions.update(face.expression for face in confirmed.values())
                    if writer:
                        captions = [f"{number}: {f.caption}" for number, f in confirmed.items()]
                        drawn = annotate(image, confirmed.values(), captions)
                        writer.write(drawn, round(frame.time * writer.rate))
        finally:
            if writer:
                writer.close()
            self.results.plot(tracker, name)
            label = name if is_camera else printable(source.name)
            print_line(f"{label}: {_describe(num_frames, len(tracker.longest()), expressions)}")
        faults += [fault for fault in (video.fault, writer and writer.fault) if fault]
        if not has_faces and not faults:
            faults.append(f"{source}: no face found in any frame")
        if faults:
            self.warn("; ".join(faults))

    def warn(self, text: str) -> None:
        """Print a warning about an input, and count it as failed."""
        self.num_failed += 1
        print_line(f"warning: {printable(text)}", sys.stderr)

    def _detect_file(self, path: Path) -> Item:
        try:
            image = read_image(path, 3)
            return path, image, self.predictor.detect(image)
        except ProjectError as error:
            return path, None, error

    def _detect_frame(self, frame: Frame) -> Item:
        return frame, frame.image, self.video_predictor.detect(frame.image)

    def _track(
        self, tracker: Tracker, faces: Sequence[Face], time: float
    ) -> Iterator[tuple[Track, Face]]:
        """Yield the tracks of a frame's confident faces, with smoothed probabilities."""
        faces = self.results.select(faces)
        boxes, probabilities = [f.box for f in faces], [f.probabilities for f in faces]
        for face, track in zip(faces, tracker.update(boxes, probabilities, time)):
            values = track.probabilities
            expression = self.predictor.class_names[int(values.argmax())]
            yield track, face._replace(expression=expression, probabilities=values)


def _describe(num_frames: int, num_faces: int, expressions: Counter[str]) -> str:
    """Return such as "240 frames, 2 faces; happy 62 %, neutral 38 % of the time"."""
    text = f"{count_of(num_frames, 'frame')}, {count_of(num_faces, 'face')}"
    total, counts = expressions.total(), expressions.most_common()
    shares = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in counts)
    return f"{text}; {shares} of the time" if shares else text
