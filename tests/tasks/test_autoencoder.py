"""Training of small autoencoders, in this process."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Picture
from safetensors.numpy import save_file

from helpers import prepare
from transfusion_jax import config as configs
from transfusion_jax.autoencoder import discriminator, perceptual
from transfusion_jax.config import ConfigError
from transfusion_jax.data.image_stream import ImageBatch, ImageRows, load_images
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.tasks.autoencoder import AutoencoderTask, coverage
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.preemption import Interruption
from transfusion_jax.training.run import train_run
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start, begin_or_resume
from transfusion_jax.training.step.state import RunContext, create_state
from transfusion_jax.training.step.step import make_step

ARCHITECTURE = dict(
    kind="kl",
    image_channels=1,
    channels=4,
    multipliers=(1,),
    blocks=1,
    groups=2,
    latent_channels=2,
    middle_attention=False,
)
VQ = ARCHITECTURE | dict(kind="vq", codebook=8)
SIDE = 24  # of images that the discriminator can judge


def config(folder="none", architecture=ARCHITECTURE, **changes):
    """Of 8×8 grey images; `losses` replaces weights that are 0 but for L1 and the bottleneck's."""
    losses = dict(lpips=0.0, gan=0.0, identity=0.0, gan_from=0) | changes.pop("losses", {})
    values = dict(
        name="tiny",
        seed=0,
        steps=4,
        batch_rows=4,
        image_size=8,
        architecture=architecture,
        data=dict(sources=dict(digits=str(folder)), flip=True),
        losses=losses,
        optimizer=dict(learning_rate=1e-2, warmup_steps=1, weight_decay=0.0, ema_decay=0.9),
        loop=dict(log_every=1, save_every=2, evaluate_every=0),
        mesh=dict(data=1),
    )
    return configs.parse_run(values | changes)


def rivals(**changes):
    """A config with a discriminator."""
    losses = dict(gan=0.5) | changes.pop("losses", {})
    return config(image_size=SIDE, losses=losses, **(dict(batch_rows=2) | changes))


def batch(rows=4, channels=1, size=8):
    image = np.random.default_rng(0).uniform(-1, 1, (rows, size, size, channels)).astype(np.float32)
    return ImageBatch(image, np.arange(rows, dtype=np.int32))


def gradients(run, params=None, step=0, of=None):
    task = AutoencoderTask(run)
    params = task.init(jax.random.key(0)) if params is None else params
    return jax.jit(task.gradients)(
        params, of or batch(run.batch_rows, size=run.image_size), jax.random.key(1), step
    )


def run(path, config, start=None):
    """As `transfusion autoencoder train`, on one device."""
    workdir, data, task = Workdir(path), load_images(config), AutoencoderTask(config)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    context = RunContext(task, config, mesh, facts_of(task, config, data), lambda line: None)
    begin_or_resume(start or Start(), context, data, workdir)
    rows = ImageRows(data.train, config.seed, config.data.flip)
    return train_run(context, workdir, rows, Interruption(context.log))


@pytest.fixture(scope="module")
def larger_digits(tmp_path_factory):
    """The digits, prepared at a size that the discriminator can judge."""
    folder = tmp_path_factory.mktemp("data") / "digits24"
    prepare(folder, ["digits"], held_out=0.15, channels=1, image_size=SIDE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(kind, digits_folder, larger_digits, tmp_path):
    whole = rivals(folder=larger_digits, losses=dict(gan_from=1)) if kind == "kl" else config(digits_folder, VQ)
    run(tmp_path / "whole", whole)
    run(tmp_path / "stopped", whole, Start(fork_from=f"{tmp_path / 'whole'}:2"))  # what a stop at step 2 leaves
    manifests = [Checkpoints(tmp_path / name / "checkpoints").manifest(4) for name in ("whole", "stopped")]
    assert manifests[0]["checksums"] == manifests[1]["checksums"]  # of every leaf's bits
    first, second = (records(tmp_path / name) for name in ("whole", "stopped"))
    names = {name for name in first[4] if name.startswith("loss")} | {"psnr", "grad_norm"}
    assert ("loss_gan" in names) == (kind == "kl")
    assert [[first[s][n] for n in names] for s in (3, 4)] == [[second[s][n] for n in names] for s in (3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_parts_of_a_batch_give_the_same(kind):
    make = rivals if kind == "kl" else lambda **changes: config(architecture=VQ, **changes)
    whole, at_once = gradients(make())
    parts, in_parts = gradients(make(accumulation=2))
    same(at_once, in_parts)
    same(whole, parts)


@pytest.mark.slow
def test_two_devices_give_the_same():
    values, states = [], []
    for mesh, devices in ((dict(data=1), 1), (dict(data=1, fsdp=2), 2)):
        run = rivals(mesh=mesh)
        task, mesh = AutoencoderTask(run), make_mesh(run.mesh, jax.devices()[:devices])
        context = RunContext(task, run, mesh)
        state, report = make_step(context)(create_state(context), batch(2, size=SIDE))
        values.append(report.values)
        states.append(jax.tree.map(np.asarray, state.optimizer))
    same(*values)
    same(*states)


def test_the_gan_begins_at_its_step_without_another_program():
    run = rivals(losses=dict(gan_from=1), batch_rows=1)
    task, mesh = AutoencoderTask(run), make_mesh(run.mesh, jax.devices()[:1])
    state, step = create_state(RunContext(task, run, mesh)), make_step(RunContext(task, run, mesh))
    seen, losses = [jax.tree.map(np.asarray, state.params["discriminator"])], []
    for _ in range(2):
        state, report = step(state, batch(rows=1, size=SIDE))
        seen.append(jax.tree.map(np.asarray, state.params["discriminator"]))
        values = {name: float(value) for name, value in report.values.items()}
        losses.append(values["loss"] - values["loss_l1"] - 1e-6 * values["loss_kl"])
    moved = [not jax.tree.all(jax.tree.map(np.array_equal, *pair)) for pair in itertools.pairwise(seen)]
    assert moved == [False, True]
    np.testing.assert_allclose(losses[0], 0, atol=1e-6)
    np.testing.assert_allclose(losses[1], 0.5 * values["loss_gan"] + values["loss_discriminator"], rtol=1e-4)
    assert step.program._cache_size() == 1


@pytest.mark.slow
def test_the_two_learn_apart():
    """The discriminator learns its hinge loss alone; the autoencoder, to be taken for real."""
    terms = dict(l1=0.0, kl=0.0)
    run = rivals(losses=terms)
    params = AutoencoderTask(run).init(jax.random.key(0))
    both, _ = gradients(run, params)
    double, _ = gradients(rivals(losses=terms | dict(gan=1.0)), params)
    same(both["discriminator"], double["discriminator"])  # the weight is of the autoencoder's term
    same(jax.tree.map(lambda g: 2 * g, both["network"]), double["network"])
    task, images = AutoencoderTask(run), batch(2, size=SIDE)

    def hinge(rival):
        drawn, _ = task.reconstruct(params["network"], images, jax.random.key(1))
        return discriminator.hinge(*(discriminator.judge_patches(rival, x) for x in (images.image, drawn))).mean()

    same(jax.jit(jax.grad(hinge))(params["discriminator"]), both["discriminator"])


def test_a_discriminator_needs_images_that_it_can_judge():
    with pytest.raises(ConfigError, match=r"losses.gan needs images of 24 pixels or more, and image_size is 8"):
        config(losses=dict(gan=0.5))
    params = discriminator.init(1, jax.random.key(0))
    assert discriminator.judge_patches(params, batch(size=SIDE).image).shape == (4, 1, 1)


@pytest.mark.parametrize("name", ["l1", "l2", "kl", "codebook"])
def test_a_term_without_weight_teaches_nothing(name):
    architecture = VQ if name == "codebook" else ARCHITECTURE
    terms = dict.fromkeys(("l1", "l2", "kl", "codebook"), 0.0)
    nothing, metrics = gradients(config(architecture=architecture, losses=terms))
    assert float(metrics.loss) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))
    alone, metrics = gradients(config(architecture=architecture, losses=terms | {name: 2.0}))
    total, count = metrics.sums[f"loss_{name}"]
    np.testing.assert_allclose(metrics.loss, 2 * total / count, rtol=1e-5)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(alone))


def test_without_weight_there_are_no_other_networks():
    params = jax.eval_shape(AutoencoderTask(config()).init, jax.random.key(0))
    assert set(params) == {"network"}


def test_entries_that_nothing_is_near_to_come_back():
    vectors = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    entries = jnp.array([[0.0, 0.0], [50.0, 50.0]])
    pull = jax.grad(lambda e: coverage(vectors, e).mean())(entries)
    assert np.all(pull[1] > 10)  # towards the vectors


# Perceptual networks


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file with networks of VGG16's names and few channels, and LPIPS's linear weights."""
    random, before, arrays = np.random.default_rng(0), 3, {}
    for stage, numbers in enumerate(perceptual.VGG):
        for number in numbers:
            kernel = 0.3 * random.standard_normal((4, before, 3, 3))
            arrays |= {f"features.{number}.weight": kernel, f"features.{number}.bias": np.zeros(4)}
            before = 4
        arrays[f"lin{stage}.model.1.weight"] = np.full((1, 4, 1, 1), 0.1)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file({name: array.astype(np.float32) for name, array in arrays.items()}, path)
    return str(path)


def perceptual_config(vgg, **changes):
    return config(
        architecture=ARCHITECTURE | dict(image_channels=3),
        image_size=16,
        losses=dict(lpips=1.0, lpips_weights=(vgg,)),
        **changes,
    )


@pytest.mark.slow
def test_perceptual_networks_stay_as_their_files_have_them(vgg):
    run = perceptual_config(vgg)
    task, mesh = AutoencoderTask(run), make_mesh(run.mesh, jax.devices()[:1])
    images = batch(channels=3, size=16)
    gradient, _ = gradients(run, of=images)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["perceptual"]))  # nor count in the norm
    before = perceptual.load_lpips((vgg,))
    state, report = make_step(RunContext(task, run, mesh))(create_state(RunContext(task, run, mesh)), images)
    assert report.values["loss_lpips"] > 0
    jax.tree.map(np.testing.assert_array_equal, state.params["perceptual"]["lpips"], before)


def test_a_missing_file_is_named(vgg):
    with pytest.raises(ConfigError, match=r"losses.identity needs .* losses.identity_weights, or set .* to 0"):
        config(losses=dict(identity=0.2))
    with pytest.raises(ConfigError, match=r"losses.lpips_weights: there is no file nowhere.safetensors"):
        perceptual.load_lpips((vgg, "nowhere.safetensors"))


def test_a_file_of_something_else_is_named(vgg, tmp_path):
    with pytest.raises(ConfigError, match=r"losses.identity_weights: .* lack 265 tensors, such as bn1.bias"):
        perceptual.load_identity((vgg,))
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"damaged.safetensors is damaged"):
        perceptual.load_lpips((str(tmp_path / "damaged.safetensors"),))


# Images as rows


def test_each_epoch_reads_every_image_once_in_another_order(digits_folder):
    images = load_images(config(digits_folder)).train
    rows = ImageRows(images, seed=0)
    count = len(images)
    epochs = [[rows[row].image.tobytes() for row in range(e * count, (e + 1) * count)] for e in range(2)]
    wanted = sorted(images[number].tobytes() for number in range(count))
    assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
    assert epochs[0] != epochs[1]


def test_a_flip_depends_on_seed_and_row_alone(digits_folder):
    images = load_images(config(digits_folder)).train
    plain, flipped = (ImageRows(images, seed=0, flip=flip) for flip in (False, True))
    turned = 0
    for row in range(40):
        image, other = plain[row].image, flipped[row].image
        mirrored = np.array_equal(other, image[:, ::-1])
        assert mirrored or np.array_equal(other, image)
        assert np.array_equal(other, flipped[row].image)
        turned += mirrored
    assert 8 < turned < 32


def test_held_out_images_are_others(digits_folder):
    data = load_images(config(digits_folder))
    train = {data.train[number].tobytes() for number in range(len(data.train))}
    held_out = {data.held_out[number].tobytes() for number in range(len(data.held_out))}
    assert held_out
    assert not train & held_out


def test_several_sources_are_read_as_one(digits_folder, tmp_path):
    prepare(tmp_path / "more", ["digits"], held_out=0.5, channels=1)
    both = config(digits_folder)
    both = replace(both, data=replace(both.data, sources={"a": str(digits_folder), "b": str(tmp_path / "more")}))
    one, two = load_images(config(digits_folder)).train, load_images(both).train
    more = load_images(config(tmp_path / "more")).train
    assert len(two) == len(one) + len(more)
    np.testing.assert_array_equal(two[len(one)], more[0])
    np.testing.assert_array_equal(two[len(two) - 1], more[len(more) - 1])


def test_images_of_another_size_are_refused(digits_folder):
    with pytest.raises(
        ConfigError, match=r"source 'digits' are \(8, 8, 1\), and the config asks for \(16, 16, 1\)"
    ):
        load_images(config(digits_folder, image_size=16))


def test_a_row_is_a_square_of_an_image_that_keeps_its_proportions(tmp_path):
    shapes = [(16, 8), (8, 24), (12, 12)]
    for number, shape in enumerate(shapes):
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Picture.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"image {number}")
    proportions = Proportions(area=256, multiple=4)
    prepare(tmp_path / "native", [str(tmp_path)], held_out=0.0, channels=1, native=proportions)
    images = load_images(config(tmp_path / "native")).train
    rows, again, other = (ImageRows(images, seed) for seed in (3, 3, 4))
    wholes = [part.latents(part.first_record(n))[0] for part in images.parts for n in range(3)]
    assert sorted(whole.shape[:2] for whole in wholes) == sorted(shapes)
    windows = [
        {whole[y : y + 8, x : x + 8].tobytes() for y, x in np.ndindex(whole.shape[0] - 7, whole.shape[1] - 7)}
        for whole in wholes
    ]
    seen = [rows[row].image.tobytes() for row in range(60)]
    for epoch in range(20):  # each image once
        crops = seen[3 * epoch : 3 * epoch + 3]
        assert sorted(next(n for n, window in enumerate(windows) if crop in window) for crop in crops) == [0, 1, 2]
    assert len(set(seen)) > 20
    assert [again[row].image.tobytes() for row in range(60)] == seen
    assert [other[row].image.tobytes() for row in range(60)] != seen
    for number, whole in enumerate(wholes):
        top, left = (side // 2 - 4 for side in whole.shape[:2])
        np.testing.assert_array_equal(images[number], whole[top : top + 8, left : left + 8])
    with pytest.raises(
        ConfigError, match=r"2 of the images of source 'digits', .* below image_size 12: set .* to 8"
    ):
        load_images(config(tmp_path / "native", image_size=12))


def records(path):
    return {r["step"]: r for r in read_lines(path / "metrics.jsonl")}


def same(first, second):
    """Equal up to the order of sums."""

    def near(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(a).max()))

    jax.tree.map(near, first, second)
