"""`transfusion prepare`: files, folders, tables and data sets into document shards to train on."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.config import ConfigError, extend, require
from transfusion_jax.data import prepare
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepare import Encoders, PrepareJob, Progress
from transfusion_jax.data.readers import Fault, InputShard, RawText, ReadOptions, files, input_shards, read_shard
from transfusion_jax.data.readers.format import flag
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.store.inspect import extent
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.data.tokenizer_files import train_byte_pairs
from transfusion_jax.errors import StorageError, printable, whole_number, whole_range
from transfusion_jax.storage.gcs import storage_errors
from transfusion_jax.storage.outputs import check_output_folder
from transfusion_jax.storage.paths import Place

OF_SQUARES, OF_NATIVE = ("image_size",), ("area", "multiple", "enlarge", "max_aspect")  # options of --aspect
LARGEST = 16_384**2  # pixels of an --area
SHOWN = 8  # records that --dry-run looks at
ENOUGH = 20  # held-out documents; with fewer, a loss on them says little
LEARNT_FROM = 200_000  # records, the first, that a tokenizer is trained on


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prepares; returns the exit code."""
    del overrides
    require(
        arguments.runner == "local" or arguments.workers is None,
        "--workers goes with --runner local: Ray uses what its cluster has",
    )
    extensions = extend(arguments.extend)
    workers = arguments.workers or os.cpu_count() or 1
    output = arguments.output
    options = ReadOptions(
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        images=arguments.images,
        **_size(arguments),
        shard_size=arguments.shard_size,
        split=arguments.split,
        languages=arguments.languages,
        data_dir=arguments.data_dir,
        allow_paths=arguments.allow_paths,
    )
    if not arguments.dry_run:
        check_output_folder(output)
        _check_apart(arguments.inputs, output)
    shards = tuple(input_shards(arguments.inputs, arguments.format, options))
    log = _say_aside if arguments.json else _say
    tokenizer = _tokenizer(arguments.tokenizer, shards, options, log)
    job = PrepareJob(
        shards=shards,
        reading=options,
        tokenizer=tokenizer.name,
        channels=arguments.channels,
        min_size=arguments.min_size,
        held_out=arguments.held_out,
        limit=arguments.limit,
        extensions=extensions,
    )
    require(bool(arguments.encode) or not arguments.log_variances, "--log-variances goes with --encode")
    encode = arguments.encode or []
    require(len(encode) < 2, "--encode takes one autoencoder at a time: give the command again for another")
    coder = autoencoders.load_autoencoder(encode[0]) if encode else None
    if coder:
        factor, _, channels = coder.image_shape((1, 1, job.channels))
        name, side = ("multiple", options.native.multiple) if options.native else ("image-size", options.image_size)
        require(
            side % factor == 0 and channels == job.channels,
            f"autoencoder {coder.name!r} takes sides that are multiples of {factor} and {channels} channels: "
            f"change --{name} {side} or --channels {job.channels}",
        )
    place, hosts = _place(arguments.shard)
    if arguments.dry_run:
        _show(job, arguments.json)
        return 0
    own = range(place, len(job.shards), hosts)
    job = prepare.begin_job(job, tokenizer, output)
    if coder:
        autoencoders.save(coder, output)
    log(f"{len(own)} of {len(job.shards)} shards to read" + (f", as host {place} of {hosts}" if hosts > 1 else ""))
    progress = _Line(log)
    try:
        with ExitStack() as stack:
            encoders = stack.enter_context(Encoders(output, job, coder, arguments.log_variances)) if coder else None
            manifest = prepare.run_job(output, job, own, arguments.runner, workers, progress, encoders)
    except storage_errors() as error:
        if isinstance(error, OSError) and (error.filename is None or str(output) in str(error.filename)):
            raise
        raise StorageError(f"an input cannot be read: {error}; the same command goes on once it can be") from error
    progress.end()
    if manifest is None:
        log("this host's part is done; the last host to end finishes the folder, or the same command does")
    elif arguments.json:
        print(json.dumps({"output": str(output), **_summary(manifest)}))
    else:
        _print_summary(output, manifest, arguments.held_out)
    if manifest is not None and not any(split["documents"] for split in manifest["splits"].values()):
        raise ConfigError(f"no document was found: {output / 'quarantine.jsonl'} says what is wrong, line by line")
    return 0


def _size(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `ReadOptions` that say how large images become.

    Raises:
        ConfigError: an option goes with another --aspect, or no image would fit.
    """
    native = arguments.aspect == "native"
    fits, other, right = (OF_NATIVE, OF_SQUARES, "square") if native else (OF_SQUARES, OF_NATIVE, "native")
    for name in other:
        unset = getattr(arguments, name) is None
        require(
            unset, f"{flag(name)} goes with --aspect {right}, and this is --aspect {arguments.aspect}: change one"
        )
    given = {name: value for name in fits if (value := getattr(arguments, name)) is not None}
    if "area" in given:
        given["area"] = _area(given["area"])
    return {"native": Proportions(**given)} if native else given


def _area(text: str) -> int:
    """The pixels of an area such as 256x256.

    Raises:
        ConfigError: the text is none.
    """
    height, width = whole_range(text, "x") or (0, 0)
    require(
        0 < height * width <= LARGEST,
        f"--area {text} must be HxW, such as 256x256, and hold {LARGEST:,} pixels at most",
    )
    return height * width


class _Line:
    """A line of progress: rewritten on a terminal, and elsewhere printed now and then."""

    def __init__(self, log: Any) -> None:
        self._say, self._terminal, self._next = log, sys.stderr.isatty(), 0.0

    def __call__(self, progress: Progress) -> None:
        if self._terminal:
            print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
        elif progress.seconds >= self._next or progress.done == progress.total:
            self._say(str(progress))
            self._next = progress.seconds + 10

    def end(self) -> None:
        if self._terminal:
            print(file=sys.stderr)


def _check_apart(inputs: Sequence[str], output: Place) -> None:
    """Returns where no input is a folder that the output would lie in, and be an input itself when this goes on."""
    for path in inputs:
        inside = files.lies_in(str(output), path) and files.is_folder(path)
        require(
            not inside or (output / "job.json").exists(),
            f"--output {output} lies in the input {path}, whose files are read: choose a folder beside it",
        )


def _tokenizer(
    name: str, shards: tuple[InputShard, ...], options: ReadOptions, log: Callable[[str], None]
) -> Tokenizer:
    kind, _, size = name.partition(":")
    if kind != "bpe":
        return tokenizers.load_tokenizer(name, log)
    entries = whole_number(size)
    if entries is None:
        raise ConfigError(f"--tokenizer {name}: say how many entries, such as bpe:4096")
    records = (record for shard in shards for record in read_shard(shard, options))
    read = islice((r for r in records if not isinstance(r, Fault)), LEARNT_FROM)
    texts = (segment.text for record in read for segment in record.segments if isinstance(segment, RawText))
    found = train_byte_pairs(texts, entries)
    if found.size < entries:
        log(
            f"--tokenizer {name}: the text gave {found.size} of {entries} entries; "
            f"a config for this data needs --config.model.vocabulary={found.size}"
        )
    return found


def _place(text: str | None) -> tuple[int, int]:
    if text is None:
        return prepare.place_among_hosts() or (0, 1)
    found = whole_range(text, "/")
    if found is None or found[0] >= found[1]:
        raise ConfigError(f"--shard {text} must be I/N with I from 0 to N-1, such as 0/4")
    return found


def _show(job: PrepareJob, as_json: bool) -> None:
    """The inputs, and the first records as they are read."""
    readings = (read_shard(shard, job.reading) for shard in job.shards)
    found = list(islice(chain.from_iterable(readings), SHOWN))
    formats = ", ".join(sorted({shard.format for shard in job.shards}))
    records = [{"key": r.key, "is": r.reason if isinstance(r, Fault) else _outline(r.segments)} for r in found]
    if as_json:
        print(json.dumps({"format": formats, "shards": len(job.shards), "first": records}))
        return
    _say(f"{len(job.shards)} shard(s) of format {formats}; the first records:")
    for record in records:
        _say(f"  {record['key']}: {record['is']}")


def _outline(segments: Any) -> str:
    return ", ".join(
        f"text {s.text[:60]!r}" + ("…" * (len(s.text) > 60)) if isinstance(s, RawText) else "image"
        for s in segments
    )


def _summary(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("splits", "tokenizer", "quarantine")} | {
        "encodings": {name: about["shape"] for name, about in manifest["encodings"].items()},
        "shapes": {name: about["shapes"] for name, about in manifest["encodings"].items() if "shapes" in about},
    }


def _print_summary(folder: Place, manifest: dict[str, Any], asked: float) -> None:
    for split, counts in manifest["splits"].items():
        shown = [f"{counts[of]:>12,} {of.replace('_', ' ')}" for of in ("documents", "images", "text_tokens")]
        _say(f"  {split.replace('_', ' '):<10}" + "".join(shown))
    for name, shapes in _summary(manifest).get("shapes", {}).items():
        _say(f"  {name:<10} {extent({(height, width): count for height, width, count in shapes})}")
    for reason, count in manifest["quarantine"].items():
        _say(f"  not used   {count:>12,} {reason}")
    if manifest["quarantine"]:
        _say(f"each with its source and reason in {folder / 'quarantine.jsonl'}")
    train, held_out = (manifest["splits"][split]["documents"] for split in ("train", "held_out"))
    if held_out < ENOUGH and asked:
        share = math.ceil(100 * ENOUGH / max(1, train + held_out)) / 100
        more = f": --held-out {share} would keep about {ENOUGH}" if (train + held_out) / 5 >= ENOUGH else ""
        _say(f"{held_out} documents are few to evaluate on{more}")
    if train + held_out:
        name = folder.name.replace("-", "_").replace(".", "_")
        alone = json.dumps({name: {"path": str(folder)}})
        _say(f"train on it alone with --config.data.sources='{alone}', or beside a config's own sources")
        _say(f"with --config.data.sources.{name}.path={folder}")


def _say(line: str) -> None:
    print(printable(line), flush=True)


def _say_aside(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
