import subprocess
import sys

import pytest

from transfusion_jax.errors import LostProcess

HANG = """
import ctypes, time
from transfusion_jax.training.monitoring.watchdog import Beat, watchdog
def stuck():
    {hang}
beat = Beat()
with watchdog({patience}, beat):
    beat.last_words = lambda reason: (print("last words:", reason, flush=True), time.sleep(100))
    for _ in range(12):
        time.sleep(0.5)
        beat()
    print("beaten", flush=True)
    stuck()
"""


def end_of(hang, patience):
    script = HANG.format(hang=hang, patience=patience)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("hang", "code"),
    [
        ("time.sleep(100)", LostProcess.exit_code),
        ("ctypes.PyDLL(None).sleep(100)", 1),  # with Python's lock held: faulthandler's own thread ends it
    ],
)
def test_a_process_in_which_nothing_goes_on_ends_with_its_stacks(hang, code):
    found, out, error = end_of(hang, 5)
    assert "beaten" in out  # what goes on for longer than the patience is let alone
    assert found == code, error
    assert "in stuck" in error
    assert code == 1 or "nothing went on for 5 s" in error
    assert code == 1 or "last words: a hang: nothing went on for 5 s" in out


def test_none_is_no_watchdog():
    code, _, error = end_of("time.sleep(0.1)", 0)
    assert (code, error) == (0, "")
