"""What was made, as files: a sheet, JSON lines with PNGs, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfusion_jax.generation.interleaved import Request, Sample
from transfusion_jax.generation.png import SMALLEST, grid, png, to_pixels, write_png
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.paths import Place

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
article { border-top: 1px solid #ccc; padding: 1rem 0; }
.prompt { color: #666; }
.made { display: flex; flex-wrap: wrap; gap: .75rem; align-items: center; }
.made p { margin: 0; white-space: pre-wrap; }
img { image-rendering: pixelated; max-width: 100%; height: auto; border-radius: 4px; }
"""


@dataclass(frozen=True)
class Sampled:
    """A sample, and what it was made from."""

    prompt: str  # in one line
    request: Request
    sample: Sample


def write_album(folder: Place, made: Sequence[Sampled], how: dict[str, Any]) -> None:
    """`samples.jsonl`, `samples.html` and the images, `NNNN-K.png`, in a folder."""
    write_samples(folder / "samples.jsonl", made, how)
    write_page(folder / "samples.html", made, how)


def write_sheet(path: Place, made: Sequence[Sampled], how: dict[str, Any]) -> None:
    """The first image of each sample on one sheet, a row for each prompt."""
    del how
    rows = [list(of_prompt) for _, of_prompt in itertools.groupby(made, key=lambda one: one.prompt)]
    columns = max(map(len, rows))
    white = np.ones((1, 1, 1))
    images = [[one.sample.images[0] for one in row] + [white] * (columns - len(row)) for row in rows]
    labels = [row[0].prompt for row in rows] if len(rows) > 1 else None
    write_png(path, grid(itertools.chain(*images), columns, labels))


def write_samples(path: Place, made: Sequence[Sampled], how: dict[str, Any]) -> None:
    """One JSON object per sample, its images as PNG files beside it, with their sizes in pixels."""
    del how
    lines = []
    for index, one in enumerate(made):
        segments: list[Any] = []
        for segment in one.sample.segments:
            if isinstance(segment, str):
                segments.append(segment)
                continue
            name = f"{index:04d}-{sum(isinstance(s, dict) for s in segments)}.png"
            write_png(path.parent / name, to_pixels(segment))
            height, width, _ = segment.shape
            segments.append({"image": name, "width": width, "height": height})
        record = dict(prompt=one.prompt, seed=one.request.seed, number=one.request.number)
        lines.append(json.dumps(record | dict(segments=segments, reason=one.sample.reason), ensure_ascii=False))
    write_whole(path, "\n".join(lines) + "\n")


def write_page(path: Place, made: Sequence[Sampled], how: dict[str, Any]) -> None:
    """A page with every prompt and what followed it."""
    articles = []
    for begin, one in enumerate(made):
        parts = "".join(_part(segment) for segment in one.sample.segments)
        new = begin == 0 or made[begin - 1].prompt != one.prompt
        title = f'<p class="prompt">{html.escape(one.prompt) or "(no prompt)"}</p>' if new else ""
        articles.append(f'{"<article>" if new else ""}{title}<div class="made">{parts}</div>')
        if begin + 1 == len(made) or made[begin + 1].prompt != one.prompt:
            articles.append("</article>")
    settings = html.escape(", ".join(f"{name} {value}" for name, value in how.items()))
    write_whole(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>Samples</title><style>{STYLE}</style>'
        f"<h1>Samples</h1><p>{settings}</p>{''.join(articles)}</html>\n",
    )


def _part(segment: str | np.ndarray) -> str:
    if isinstance(segment, str):
        return f"<p>{html.escape(segment)}</p>"
    pixels = to_pixels(segment)
    larger = max(1, SMALLEST / max(pixels.shape[:2]))
    height, width = (round(larger * side) for side in pixels.shape[:2])
    encoded = base64.b64encode(png(pixels)).decode()
    return f'<img width="{width}" height="{height}" alt="a drawn image" src="data:image/png;base64,{encoded}">'
