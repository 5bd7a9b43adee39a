"""Lines that predict.py prints about its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_LINES = 20  # images with a line each; more have one summary


def describe_image(name: str, predictions: Sequence[tuple[str, float]]) -> str:
    """Return such as "both.png: 2 faces, happy 89 %, neutral 61 %".

    Args:
        name: Of the file.
        predictions: Expression and probability of each face.
    """
    parts = [count_of(len(predictions), "face")]
    parts += [f"{expression} {100 * probability:.0f} %" for expression, probability in predictions]
    return f"{name}: {', '.join(parts)}"


def describe_images(num_images: int, expressions: Counter[str]) -> str:
    """Return such as "30 images: 41 faces, 22 happy, 19 neutral"."""
    parts = [count_of(expressions.total(), "face")]
    parts += [f"{count:,} {expression}" for expression, count in expressions.most_common()]
    return f"{count_of(num_images, 'image')}: {', '.join(parts)}"


def describe_video(name: str, num_frames: int, num_faces: int, expressions: Counter[str]) -> str:
    """Return such as "film.mp4: 240 frames, 2 faces; happy 62 %, neutral 38 % of the time".

    Args:
        name: Of the file.
        num_frames: Number of predicted frames.
        num_faces: Number of different faces.
        expressions: Number of predictions by expression.
    """
    text = f"{name}: {count_of(num_frames, 'frame')}, {count_of(num_faces, 'face')}"
    if not expressions:
        return text
    total = expressions.total()
    shares = [f"{name} {100 * count / total:.0f} %" for name, count in expressions.most_common()]
    return f"{text}; {', '.join(shares)} of the time"


def count_of(number: int, noun: str) -> str:
    """Return such as "1 face" or "1,204 faces"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
