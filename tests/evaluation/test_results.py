import fcntl
import os
import threading
from dataclasses import replace

from helpers import tiny_config, tiny_data, token_config
from transfusion_jax.evaluation import results
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.training.run_dir import Workdir


def test_results_name_the_spacing_of_what_was_drawn():
    assert results.sampling_of(tiny_config())["spacing"] == "trailing"  # as in entries of former versions
    assert results.sampling_of(tiny_config(sampling__spacing="trailing"))["spacing"] == "trailing"
    assert results.sampling_of(tiny_config(diffusion__timestep_base=4))["spacing"] == "shifted"
    even = tiny_config(diffusion__timestep_base=4, sampling__spacing="trailing")
    assert results.sampling_of(even)["spacing"] == "trailing"
    assert "spacing" not in results.sampling_of(token_config())


def test_what_changed_for_images_of_any_shape_alone_leaves_other_entries_valid():
    suite, data = Suite(lambda *_: {}, version=2, native_version=3), tiny_data()
    native = tiny_config(model__max_side=8)
    assert [results.settings(suite, config, data, None)["version"] for config in (tiny_config(), native)] == [2, 3]
    assert results.settings(replace(suite, native_version=0), native, data, None)["version"] == 2


def test_entries_that_many_write_at_once_all_stay(tmp_path):
    """Each reads the file, and puts it whole: one at a time, or what another added meanwhile would be lost."""
    workdir, count, both = Workdir(tmp_path), 8, threading.Barrier(8)

    def write(step):
        both.wait()
        results.write_entry(workdir, {"step": step, "metrics": {"loss": 1.0}})

    threads = [threading.Thread(target=write, args=(step,)) for step in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry["step"] for entry in results.read_entries(workdir)] == list(range(count))


def test_an_entry_is_written_once_another_process_is_through(tmp_path):
    workdir = Workdir(tmp_path)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    writing = threading.Thread(target=results.write_entry, args=(workdir, {"step": 2, "metrics": {}}))
    writing.start()
    (tmp_path / "evaluation.json").write_text('{"evaluations": [{"step": 1, "metrics": {}}]}\n')
    os.close(other)
    writing.join()
    assert [entry["step"] for entry in results.read_entries(workdir)] == [1, 2]
