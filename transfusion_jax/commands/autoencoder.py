"""`transfusion autoencoder`: trains an image autoencoder, shows what it does, exports it for `prepare --encode`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from transfusion_jax import config as configs
from transfusion_jax.autoencoder.kinds.trained import Trained
from transfusion_jax.autoencoder.network import Network, Params
from transfusion_jax.commands.common.launch_args import context_of, log, make_ready, watching_of
from transfusion_jax.config import AutoencoderRun, ConfigError, Run, require
from transfusion_jax.data.image_stream import ImageData, ImageRows, load_images
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.evaluation.reconstruction import measure_reconstruction, reconstruct, sheet, spread
from transfusion_jax.generation.png import write_png
from transfusion_jax.parallel import processes
from transfusion_jax.storage.outputs import check_output_file, check_output_folder
from transfusion_jax.tasks.autoencoder import AutoencoderTask
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.reader import to_devices
from transfusion_jax.training.loop import Hook, Monitor, Outcome
from transfusion_jax.training.monitoring.telemetry import Watching
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.preemption import Interruption, watch_signals
from transfusion_jax.training.run import begun, train_run
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains, and returns the exit code."""
    require(not arguments.json, "--json goes with --dry-run")
    config = _config(arguments, overrides)
    if arguments.workdir is None:
        raise ConfigError("autoencoder train needs --workdir DIR (or --dry-run to look only)")
    with watch_signals(log) as interruption:
        outcome = _train(arguments, config, interruption, watching_of(arguments, config))
    return INTERRUPTED if outcome.interrupted else 0


def dry_run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the resolved config and its size; returns the exit code."""
    config = _config(arguments, overrides)
    print(
        json.dumps({"config": configs.to_dict(config), "parameters": AutoencoderTask(config).parameters}, indent=2)
    )
    return 0


def _config(arguments: argparse.Namespace, overrides: list[str]) -> AutoencoderRun:
    if arguments.config:
        return _as_autoencoder(configs.load_run(arguments.config, overrides))
    require(arguments.workdir is not None, "needs --config FILE[:arg], such as configs/autoencoder.py:kl,small")
    return configs.override(_as_autoencoder(Workdir(arguments.workdir).run()), overrides)


def _as_autoencoder(config: Run) -> AutoencoderRun:
    if not isinstance(config, AutoencoderRun):
        raise ConfigError(f"{config.name!r} is no autoencoder's config: it has no architecture; transfusion train")
    return config


def _train(
    arguments: argparse.Namespace, config: AutoencoderRun, interruption: Interruption, watching: Watching
) -> Outcome:
    with interruption.may_leave():
        mesh, workdir = make_ready(arguments, config)
        data = load_images(config)
        require(
            not config.loop.evaluate_every or len(data.held_out) > 0,
            "no images are held out to evaluate on: prepare them with --held-out, or set loop.evaluate_every to 0",
        )
        task = AutoencoderTask(config)
        processes.each(lambda: bool(task.perceptual))  # missing files are found before the workdir is begun
        context = context_of(task, config, data, mesh)
    accepted = tuple((arguments.accept_changes or "").replace(",", " ").split())
    beat = Beat()
    with begun(Start(accept_changes=accepted), context, data, workdir, interruption, beat):
        log(f"{config.name}: {task.parameters / 1e6:.2f}M parameters, {config.batch_rows} images per step")
        rows = ImageRows(data.train, config.seed, config.data.flip)
        hooks = _hooks(task, config, data, workdir)
        return train_run(context, workdir, rows, interruption, hooks, watching, beat)


def _hooks(task: AutoencoderTask, config: AutoencoderRun, data: ImageData, workdir: Workdir) -> tuple[Hook, ...]:
    def shown(params: Any) -> tuple[Any, Any, Any]:
        images = spread(data.held_out, config.held_out_images)
        return images, *reconstruct(task.network, params["network"], images, config.part_rows)

    def evaluate(step: int, params: Any, monitor: Monitor) -> dict[str, float]:
        del step, monitor
        return {
            f"held_out/{name}": value
            for name, value in measure_reconstruction(task.network, *shown(params)).items()
        }

    def sample(step: int, params: Any, monitor: Monitor) -> dict[str, float]:
        images, drawn, _ = shown(params)
        monitor.image(step, "reconstructions", sheet(images, drawn))
        if processes.first():
            write_png(workdir.samples / f"{step:08d}.png", sheet(images, drawn))
        return {}

    return Hook(config.loop.evaluate_every, evaluate), Hook(config.loop.sample_every, sample)


def _read(arguments: argparse.Namespace) -> tuple[AutoencoderRun, Params, str]:
    """A run's config and network, and which step and weights were chosen, which is also said."""
    workdir = Workdir(arguments.workdir)
    config = _as_autoencoder(workdir.run())
    weights = arguments.weights or ("ema" if config.optimizer.ema_decay else "raw")
    require(
        weights == "raw" or config.optimizer.ema_decay > 0,
        "this run kept no average of its weights (optimizer.ema_decay is 0): use --weights raw",
    )
    with Checkpoints(workdir.checkpoints) as checkpoints:
        abstract = to_devices({"network": Network(config.architecture).abstract_params()})
        step, params = checkpoints.read(
            arguments.step, lambda step: (step, checkpoints.weights(step, weights, abstract)["network"])
        )
    which = f"step {step} of {config.steps}, {weights} weights"
    print(f"{workdir.path}: {which}")
    return config, params, which


def reconstruct_images(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Draws held-out images above their reconstructions; returns the exit code."""
    del overrides
    require(arguments.output.suffix.lower() == ".png", f"--output {arguments.output} must be a FILE.png")
    check_output_file(arguments.output)
    config, params, _ = _read(arguments)
    network, held_out = Network(config.architecture), load_images(config).held_out
    require(len(held_out) > 0, "this run's data holds out no images")
    images = spread(held_out, config.held_out_images)
    drawn, codes = reconstruct(network, params, images, config.part_rows)
    for name, value in measure_reconstruction(network, images, drawn, codes).items():
        print(f"  {name:<12}  {value:8.4f}")
    write_png(arguments.output, sheet(images, drawn))
    print(f"{min(len(images), 16)} of {len(images)} images above their reconstructions in {arguments.output}")
    return 0


def export(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes an autoencoder as a folder for `prepare --encode`; returns the exit code."""
    del overrides
    check_output_folder(arguments.output)
    config, params, which = _read(arguments)
    Trained(arguments.name, config.architecture, params, f"{config.name}, {which}").save(arguments.output)
    print(f"written to {arguments.output}; transfusion prepare … --encode {arguments.output}")
    return 0
