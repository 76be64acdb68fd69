"""Small configs, corpora and batches that tests share."""

from __future__ import annotations

import bisect
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import programs
from transfusion_jax import config as configs
from transfusion_jax.autoencoder.kinds.grey import Grey
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.commands.hooks import plan
from transfusion_jax.config import Choices, Config, ModelConfig
from transfusion_jax.config.choices import Entry
from transfusion_jax.conversion.runs import write_run
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.data.datasets import Codec, Data, load_data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.prepare import PrepareJob
from transfusion_jax.data.prepare import begin_job as begin_preparing
from transfusion_jax.data.prepare.finish import finish_folder
from transfusion_jax.data.prepare.shard import prepare_shard
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.store.dataset import Prepared
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.model.media import Media, grid_coords, patchify, unpatchify
from transfusion_jax.model.transfusion import Transfusion
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.storage.atomic import read_json, write_json
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.checkpoint.chunks import Leaf
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.loop import Hook, Outcome
from transfusion_jax.training.monitoring.telemetry import NOTHING_MORE, Watching
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.preemption import Interruption
from transfusion_jax.training.run import train_run
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start, begin_or_resume, kept_plan
from transfusion_jax.training.step.state import RunContext

LATENT = (4, 4, 2)
VOCABULARY = 20


def tiny_config(**changes: Any) -> Config:
    """A config that computes in milliseconds; `changes` are `section__field=value`."""
    values: dict[str, Any] = dict(
        name="tiny",
        seed=0,
        steps=8,
        batch_rows=4,
        model=dict(
            width=16,
            layers=2,
            heads=2,
            mlp_width=24,
            vocabulary=VOCABULARY,
            latent_shape=LATENT,
            patch_size=2,
        ),
        data=dict(
            context_length=48,
            max_images=4,
            sources=dict(
                pairs=dict(path="synthetic:pairs", weight=2.0),
                texts=dict(path="synthetic:text", weight=1.0),
            ),
        ),
        diffusion=dict(image_first_limit=500),
        optimizer=dict(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9),
        mesh=dict(data=1),
    )
    for name, value in changes.items():
        *sections, field = name.split("__")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[field] = value
    return configs.parse(values)


SHAPES = ((4, 6), (2, 8), (6, 4), (4, 4), (2, 2))
SEVERAL = dict(model__latent_shape=(4, 6, 2), model__max_side=8)  # of `tiny_config`, for images of these shapes


GROUPED: dict[str, dict[str, Any]] = {  # of `tiny_config`: trunks as today's language models have them
    "llama 3": dict(
        model__heads=4,
        model__kv_heads=2,
        model__rope_scaling="llama3",
        model__rope_factor=8.0,
        model__rope_frequency_factors=(1.0, 3.0),
        model__rope_original_context=64,
    ),
    "qwen 2": dict(
        model__heads=4,
        model__kv_heads=1,
        model__attention_bias=True,
        model__rope_scaling="linear",
        model__rope_factor=2.0,
        model__tied_embeddings=True,
    ),
    "qwen 3": dict(
        model__heads=6,
        model__kv_heads=3,
        model__head_dim=6,
        model__query_key_norm=True,
        model__query_key_norm_kind="rms",
        model__tied_embeddings=True,
    ),
}


def stand_in(monkeypatch: Any, table: Choices, name: str, implementation: Any) -> None:
    """Makes a name of a table mean this until the test ends."""
    monkeypatch.setitem(table._added, name, Entry("", lambda: implementation))


CODEBOOK = 11


def token_config(images: str = "codes", **changes: Any) -> Config:
    """`tiny_config` of a model of codes, with all that makes it Chameleon, or of text alone (`images="none"`)."""
    family = dict(
        model__images=images,
        model__patch_size=1,
        model__query_key_norm=True,
        model__norm="post",
        z_loss=1e-3,
        diffusion={},
    )
    if images == "codes":
        family |= dict(model__codebook=CODEBOOK, model__image_attention="causal")
    return tiny_config(**(family | changes))


def random_text(random: np.random.Generator, low: int = 1, high: int = 30) -> Text:
    return Text(random.integers(0, VOCABULARY, random.integers(low, high)).astype(np.int32))


def random_image(random: np.random.Generator, height: int = LATENT[0], width: int = LATENT[1]) -> Image:
    return Image(random.standard_normal((height, width, LATENT[2])).astype(np.float32))


def tiny_corpus(seed: int = 0, documents: int = 40) -> Corpus:
    """Captioned images and texts, of ragged lengths."""
    random = np.random.default_rng(seed)
    pairs = [Document((random_text(random, 1, 8), random_image(random))) for _ in range(documents)]
    texts = [Document((random_text(random, 5, 90),)) for _ in range(documents)]
    return Corpus((Source("pairs", DocumentList(pairs)), Source("texts", DocumentList(texts))))


def special() -> SpecialTokens:
    return SpecialTokens.after(VOCABULARY)


def code_corpus(seed: int = 0, documents: int = 40) -> Corpus:
    """The tiny corpus with codes in place of latents."""
    random = np.random.default_rng(seed)

    def coded(segment: Text | Image) -> Text | Image:
        if isinstance(segment, Text):
            return segment
        return Image(random.integers(0, CODEBOOK, LATENT[:2], np.int32), segment.loss)

    pairs, texts = tiny_corpus(seed, documents).sources
    coded_pairs = [Document(tuple(coded(s) for s in d.segments)) for d in pairs]
    return Corpus((Source("pairs", DocumentList(coded_pairs)), texts))


def corpus_of(config: Config) -> Corpus:
    """The tiny corpus as a config's model sees it."""
    if config.model.images == "none":
        return Corpus(tiny_corpus().sources[1:])
    return code_corpus() if config.model.images == "codes" else tiny_corpus()


def code_codec() -> Codec:
    """Letters, and grey levels of pixels as codes."""
    return Codec(Letters(), special(), Grey(1, CODEBOOK), None)


def tiny_batch(config: Config, first_row: int = 0, rows: int | None = None) -> Batch:
    """Consecutive rows of the tiny corpus's stream."""
    stream = make_rows(corpus_of(config), config, special())
    return stack([stream[first_row + r] for r in range(rows or config.batch_rows)])


def slots(batch: Batch) -> np.ndarray:
    """Which of its row's images each element is of, −1 for text; the images are of one size."""
    media = batch.media.get("images")
    return batch.patch if media is None else np.where(batch.patch >= 0, batch.patch // media.one_size, -1)


def as_latents(patches: Any, model: ModelConfig) -> Any:
    """Patches `[…, M, D]` of images of one size, as images `[…, N, h, w, c]`."""
    *lead, _, values = patches.shape
    return unpatchify(patches.reshape(*lead, -1, model.patches, values), model.patch_size, model.patch_grid)


def latents(batch: Batch, config: Config) -> Any:
    """A batch's images of one size, `[B, N, h, w, c]`; a row's without B."""
    return as_latents(batch.media["images"].patches, config.model)


def with_latents(batch: Batch, images: Any, config: Config) -> Batch:
    """A batch with other images `[B, N, h, w, c]` in the places of its own."""
    media = batch.media["images"]
    patches = patchify(images, config.model.patch_size).reshape(media.patches.shape)
    return replace(batch, media={"images": replace(media, patches=patches)})


def with_images(batch: Batch, **changes: Any) -> Batch:
    """A batch with some arrays of its images changed."""
    return replace(batch, media={"images": replace(batch.media["images"], **changes)})


def media_of(images: Any, model: ModelConfig, limits: Any = 1000) -> Media:
    """Images `[B, N, h, w, c]` alone, whose patches are the first elements of their rows."""
    shape = rows, count = images.shape[:2]
    index = np.tile(np.arange(count * model.patches, dtype=np.int32), (rows, 1))
    return Media(
        patches=patchify(images, model.patch_size).reshape(*index.shape, model.patch_channels),
        item=index // model.patches,
        coords=np.tile(grid_coords(1, *model.patch_grid), (rows, count, 1)),
        element=index,
        grid=np.tile(np.array([1, *model.patch_grid], np.int32), (*shape, 1)),
        weight=np.ones(shape, np.float32),
        timestep_limit=jnp.broadcast_to(jnp.asarray(limits, jnp.int32), shape),
        comes_first=np.zeros(shape, np.bool_),
        source=np.zeros(shape, np.int32),
        one_size=model.patches,
    )


def embed_at(model: Transfusion, batch: Batch, timestep: int = 0) -> Any:
    """The elements as vectors, all images being at one timestep, and the patch coder's skips."""
    media = batch.media["images"]
    return model.embed(batch.tokens, batch.patch, media, np.full(media.weight.shape, timestep, np.int32))


class Letters:
    """Twenty letters as a tokenizer."""

    name, content, size = "letters", b"", VOCABULARY
    marks = bos = eos = None
    stops = ()

    def encode(self, text: str) -> np.ndarray:
        return np.array([(ord(c) - ord("a")) % VOCABULARY for c in text], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(chr(ord("a") + int(t)) for t in tokens)

    def bytes_of(self, token: int, begins: bool = False) -> int:
        return 1


def tiny_codec() -> Codec:
    """Letters, and pixels of mean 0 and standard deviation ½."""
    return Codec(Letters(), special(), Identity(), LatentStatistics(np.zeros(2), np.full(2, 0.5)))


def tiny_data() -> Data:
    """The tiny corpus, and another one held out."""
    return Data(tiny_corpus(), tiny_corpus(seed=1, documents=4), tiny_codec())


def edit_run(path: Path, config: dict[str, Any] | None = None, without: tuple[str, ...] = ()) -> None:
    """Changes a run's files as a former version might have written them, which kept no hash of `config.json`.

    Args:
        path: the run's directory.
        config: what `config.json` then holds; None leaves it.
        without: what the manifest then lacks.
    """
    manifest = read_json(path / "manifest.json", "")
    write_json(path / "manifest.json", {k: v for k, v in manifest.items() if k not in (*without, "config_hashes")})
    if config is not None:
        write_json(path / "config.json", config)


def tiny_run(
    path: Path,
    config: Config,
    start: Start | None = None,
    hooks: tuple[Hook, ...] = (),
    watching: Watching = NOTHING_MORE,
    beat: Beat | None = None,
    row_plan: int | None = None,
) -> Outcome:
    """Trains in this process, on one device, as `transfusion train` does; what it says is in `path/said`."""
    workdir, task = Workdir(path), make_task(config)
    data = replace(tiny_data(), row_plan=row_plan or kept_plan(start or Start(), workdir))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    said: list[str] = []
    try:
        context = RunContext(task, config, mesh, facts_of(task, config, data), said.append)
        with programs.shared():
            begin_or_resume(start or Start(), context, data, workdir)
        rows = make_rows(data.train, config, data.codec.special, version=data.row_plan)
        rows = replace(rows, skipped=workdir.skip_rows)
        interruption = Interruption(said.append)
        hooks = (*hooks, plan.hook(context, data, workdir))
        with programs.shared():
            return train_run(context, workdir, rows, interruption, hooks, watching, beat)
    finally:
        path.mkdir(parents=True, exist_ok=True)
        (path / "said").write_text("\n".join(said))


def begin_tiny(workdir: Workdir, event: str, *skip_rows: Any, **details: Any) -> None:
    """Writes config and manifest of a tiny run."""
    config, data = tiny_config(), tiny_data()
    workdir.begin(config, facts_of(make_task(config), config, data), data, event, *skip_rows, **details)


def begin_run(path: Path, config: Config) -> None:
    """A run that has learnt nothing: random weights on the data that its config names."""
    params = make_task(config).model.init(jax.random.key(0))
    leaves = zip(leaf_names(params), jax.tree.leaves(params), strict=True)
    made = {name: Leaf.of(np.asarray(leaf)) for name, leaf in leaves}
    write_run(path, config, load_data(config).codec, made, "random")


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[int]:
    """The room left in each row by the packing of textbooks, one document after the other."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = bisect.bisect_left(rooms, length)
        room = rooms.pop(fitting) if fitting < len(rooms) else capacity
        bisect.insort(rooms, room - length)
    return rooms


def digits_config(folder: Path, **changes: Any) -> Config:
    """A tiny config on the prepared digits of the fixture `digits_folder`."""
    base = dict(
        model__vocabulary=256,
        model__latent_shape=(8, 8, 1),
        model__patch_size=4,
        data__sources={"digits": {"path": str(folder)}},
    )
    return tiny_config(**(base | changes))


def prepare(folder: Path, inputs: list[str], held_out: float = 0.0, **options: Any) -> Prepared:
    """`transfusion prepare` in this process, with bytes as tokenizer unless another is named."""
    tokenizer = tokenizers.load_tokenizer(options.pop("tokenizer", "bytes"))
    form, channels = options.pop("format", None), options.pop("channels", 3)
    min_size = options.pop("min_size", 0)
    reading = ReadOptions(**(dict(image_size=8) | options))
    shards = tuple(input_shards(inputs, form, reading))
    job = PrepareJob(shards, reading, tokenizer.name, channels, min_size, held_out)
    begin_preparing(job, tokenizer, folder)
    for number in range(len(shards)):
        prepare_shard(folder, job, number)
    finish_folder(folder, job)
    return Prepared.open(folder)
