import fcntl
import os
import threading

from transfusion_jax.evaluation import results
from transfusion_jax.training.run_dir import Workdir


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
