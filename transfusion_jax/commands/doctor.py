"""`transfusion doctor`: what prepared data holds, how a run is, what is wrong, or what a row is made of."""

from __future__ import annotations

import argparse
import json
from itertools import chain, repeat
from typing import Any

import numpy as np

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data import datasets as data_loading
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.documents import Document, Image, Source, Text
from transfusion_jax.data.packing import plan_store
from transfusion_jax.data.store import inspect
from transfusion_jax.data.store.dataset import SPLITS, Prepared, PreparedDocuments
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.errors import printable
from transfusion_jax.generation.contact_sheet import contact_sheet
from transfusion_jax.generation.png import write_png
from transfusion_jax.storage.outputs import check_output_file
from transfusion_jax.storage.paths import Place, place
from transfusion_jax.training import verification
from transfusion_jax.training.facts import data_of
from transfusion_jax.training.monitoring import status
from transfusion_jax.training.run_dir import Workdir

SHEET, COLUMNS = 32, 8  # images on a contact sheet, and in a line of it
WIDEST = 40  # characters of a histogram's bar
LONGEST = 80  # characters shown of a text


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Examines; returns 1 where something is wrong with data or a run, else 0."""
    del overrides
    row, output = arguments.row, arguments.output
    require(
        (arguments.place is None) != (arguments.workdir is None),
        "doctor needs a folder that prepare or train wrote, or --workdir DIR: one of them",
    )
    folder: Place = arguments.place or arguments.workdir
    of_run = row is None and (arguments.place is None or Workdir(folder).exists())
    require(row is None or not arguments.verify, "--verify reads whole files: leave out --row")
    require(output is None or not of_run, "--output goes with prepared data, and with --row")
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output must end in .png, not {output}")
    if output is not None:
        check_output_file(output)
    if of_run:
        wrong = verification.damaged_files(Workdir(folder)) if arguments.verify else []
        report = {"wrong": wrong} if wrong else status.examine(Workdir(folder))
    elif row is None:
        report = _examine(folder, arguments.verify, output or place("doctor.png"))
    else:
        report = _look_up(Workdir(folder), row, output or place(f"row-{row}.png"))
    if arguments.json:
        print(json.dumps(report))
    elif of_run:
        _say("\n".join(f"WRONG: {line}" for line in wrong) or "\n".join(status.report_lines(report)))
    else:
        (_print_data if row is None else _print_row)(report)
    return int(bool(report.get("wrong")))


def _examine(folder: Place, verify: bool, output: Place) -> dict[str, Any]:
    prepared = Prepared.open(folder)
    manifest = prepared.manifest
    wrong = inspect.damaged_shards(prepared) if verify else []
    shown = list(manifest["encodings"]) if manifest["splits"]["train"]["images"] and not wrong else []
    if shown:
        check_output_file(output)
    measured = {
        name: inspect.measure_images(prepared, name) for name in shown if manifest["encodings"][name]["moments"]
    }
    wrong += inspect.findings(prepared, measured)
    wrong += plan_store.damaged_plans(plan_store.default_cache()) if verify else []
    channels = manifest["encodings"]["pixels"]["shape"][-1] if measured else 1
    documents = PreparedDocuments(prepared, "train", "pixels", data_loading.plain_statistics(channels))
    pictured = np.asarray(documents.images) > 0
    lengths = {
        "captions": inspect.histogram(documents.text_lengths[pictured]),
        "texts": inspect.histogram(documents.text_lengths[~pictured]),
    }
    if measured:
        places = np.flatnonzero(pictured)
        chosen = places[np.unique(np.linspace(0, len(places) - 1, SHEET).astype(int))].tolist()
        images = [documents.latents(documents.first_record(number))[0] for number in chosen]
        captions = [_text_of(documents[number], prepared.tokenizer, drawn=1) for number in chosen]
        write_png(output, contact_sheet(images, captions, COLUMNS))
    return {
        "data": str(folder),
        "splits": manifest["splits"],
        "tokenizer": manifest["tokenizer"],
        "shapes": {
            name: [[*shape, count] for shape, count in prepared.shapes(name).items()]
            for name in (manifest["encodings"] if prepared.native else ())
        },
        "lengths": {name: dict(bins) for name, bins in lengths.items() if bins},
        "quarantine": manifest["quarantine"],
        "encodings": {
            name: {
                "shape": manifest["encodings"][name]["shape"],
                **one.statistics.to_dict(),
                "blank": one.blank,
                "late_signal": one.late_signal,
            }
            for name, one in measured.items()
        },
        "codes": {
            name: {"shape": manifest["encodings"][name]["shape"], "entries": inspect.entries_used(prepared, name)}
            for name in shown
            if name not in measured
        },
        "pictures": str(output) if measured else None,
        "wrong": wrong,
    }


def _print_data(report: dict[str, Any]) -> None:
    _say(report["data"])
    for split in SPLITS:
        counts = [f"{report['splits'][split][of]:,} {of.replace('_', ' ')}" for of in inspect.COUNTED]
        _say(f"  {split.replace('_', ' '):<9}  {', '.join(counts)}")
    _say(f"  tokenizer  {report['tokenizer']['name']}, {report['tokenizer']['size']:,} entries")
    shapes = {name: {(h, w): count for h, w, count in of_all} for name, of_all in report["shapes"].items()}
    if shapes:
        _print_bars("images of height×width", dict(inspect.shape_histogram(shapes["pixels"])))
    for name, bins in report["lengths"].items():
        _print_bars(f"tokens of {name}", bins)
    for name, about in report["encodings"].items():
        mean, std = (" ".join(f"{value:.3f}" for value in about[of]) for of in ("mean", "std"))
        _say(f"{name} {_shape(about['shape'], shapes.get(name))}: mean {mean}, deviation {std}")
        _say(f"  images that show nothing: {about['blank']:.1%}")
        _say(f"  coarse shape at {inspect.LATE:.0%} of the noise: {about['late_signal']:.2f} times the noise")
    for name, about in report["codes"].items():
        used = f"{about['entries']:,} entries in the images looked at"
        _say(f"{name} {_shape(about['shape'], shapes.get(name))}: codes, {used}")
    for reason, count in report["quarantine"].items():
        _say(f"not used: {count:,} {reason}")
    if report["pictures"]:
        _say(f"pictures in {report['pictures']}")
    _say("\n".join(f"WRONG: {line}" for line in report["wrong"]) or "nothing is wrong")


def _print_bars(title: str, bins: dict[str, int]) -> None:
    _say(title)
    for label, count in bins.items():
        _say(f"  {label:>13}  {count:>11,}  {'█' * round(WIDEST * count / max(bins.values()))}")


def _shape(shape: list[int], shapes: dict[tuple[int, int], int] | None) -> str:
    """The shape of all images, or of which shapes they are."""
    if shapes is None:
        return "×".join(map(str, shape))
    return f"({inspect.extent(shapes)}{''.join(f', {channels} channels' for channels in shape[2:])})"


def _look_up(workdir: Workdir, row: int, output: Place) -> dict[str, Any]:
    config = workdir.config()
    beyond = config.steps * config.batch_rows + sum(end - begin for begin, end in workdir.skip_rows)
    require(row < beyond, f"--row {row} is beyond the run, whose rows are 0 to {beyond - 1}")
    if config.model.images != "none":
        check_output_file(output)
    data = data_of(workdir, config)
    rows = make_rows(data.train, config, data.codec.special, version=data.row_plan)
    pieces, images, names = [], [], []
    for of_corpus, start, length in rows.pieces(row):
        source, number = data.train.find(of_corpus)
        pieces.append(_about_piece(data, data.train.sources[source], number, (start, start + length)))
        document = data.train.sources[source].documents[number] if pieces[-1]["images"] else None
        shown = [s.latent for s in document.segments if isinstance(s, Image)] if document else []
        images += [data.codec.images(latent[None])[0] for latent in shown]
        names += [f"{pieces[-1]['source']} {number}"] * len(shown)
    if images:
        write_png(output, contact_sheet(images, names, COLUMNS))
    used = int(np.sum(rows[row].source >= 0))
    return {
        "row": row,
        "phase": config.data.mixtures[rows.planner.find(row).phase].start,
        "left_out": any(begin <= row < end for begin, end in workdir.skip_rows),
        "elements": used,
        "padding": config.data.context_length - used,
        "documents": pieces,
        "pictures": str(output) if images else None,
    }


def _text_of(document: Document, tokenizer: Tokenizer, drawn: int = 0) -> str:
    """The texts of a document with images, and where those stand between them; the first `drawn` are left out."""
    marks = chain(repeat("", drawn), repeat("[image]"))
    texts = (tokenizer.decode(s.tokens) if isinstance(s, Text) else next(marks) for s in document.segments)
    return " ".join(filter(None, texts))


def _about_piece(data: Data, source: Source, number: int, stretch: tuple[int, int]) -> dict[str, Any]:
    documents = source.documents
    if source.pictured:
        text = _text_of(documents[number], data.codec.tokenizer)
    else:
        text = data.codec.tokenizer.decode(documents.text(number, max(stretch[0] - 1, 0), stretch[1] - 1))
    return {
        "source": source.name,
        "document": number,
        "origin": documents.origin(number) if isinstance(documents, PreparedDocuments) else "synthetic",
        "elements": list(stretch),
        "images": int(documents.images[number]),
        "text": " ".join(text.split()),
    }


def _print_row(report: dict[str, Any]) -> None:
    padding = f"{report['padding']:,} padding"
    _say(f"row {report['row']}, phase from row {report['phase']} on: {report['elements']:,} elements, {padding}")
    if report["left_out"]:
        _say("this run leaves the row out (--skip-rows)")
    for piece in report["documents"]:
        begin, end = piece["elements"]
        text = piece["text"] if len(piece["text"]) <= LONGEST else f"{piece['text'][: LONGEST - 1]}…"
        _say(f"  {piece['source']} {piece['document']} [{begin}:{end}]  {piece['origin']}\n    {text}")
    if report["pictures"]:
        _say(f"pictures in {report['pictures']}")


def _say(line: str) -> None:
    print(printable(line))
