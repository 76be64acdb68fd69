"""Signals in a process of their own: what it prints and its exit code."""

import subprocess
import sys
import textwrap

import pytest

from transfusion_jax.errors import INTERRUPTED

SETUP = """
import os, signal, time
import numpy as np
from transfusion_jax.errors import StorageError
from transfusion_jax.training.preemption import watch_signals

def hit(number):
    os.kill(os.getpid(), number)

def save():
    print("saving")

def broken():
    raise StorageError("no room")

before = signal.getsignal(signal.SIGTERM)
with watch_signals(print) as interruption:
"""


def run(body, after=""):
    """Exit code, output and errors of a program that does the body while signals are watched."""
    code = SETUP + textwrap.indent(textwrap.dedent(body), "    ") + f"\n{after}\n"
    result = subprocess.run(
        [sys.executable, "-u", "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    return result.returncode, result.stdout, result.stderr


def test_a_signal_is_a_request_while_the_process_may_not_leave():
    code, out, err = run("""
        hit(signal.SIGTERM)
        while not interruption.requested: time.sleep(0.01)
        print("step ended")
    """)
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == ["step ended"]
    assert out.startswith("SIGTERM: saving as soon as")


@pytest.mark.parametrize("first", ["hit(signal.SIGINT)", "hit(signal.SIGTERM)"])
def test_it_leaves_at_once_where_it_may_even_out_of_code_that_never_returns(first):
    code, out, _ = run(f"""
        with interruption.may_leave(save):
            {first}
            np.linalg.svd(np.random.default_rng(0).random((4000, 4000)))  # one instruction for Python, long
    """)
    assert code == INTERRUPTED
    assert out.splitlines()[1:] == ["saving", "saved; run the same command to go on"]


def test_a_request_that_came_before_counts_where_it_may_leave():
    code, out, _ = run("""
        hit(signal.SIGTERM)
        while not interruption.requested: time.sleep(0.01)
        time.sleep(0.2)
        with interruption.may_leave(save): time.sleep(60)
    """)
    assert (code, out.count("saving\n")) == (INTERRUPTED, 1)


def test_the_inner_of_two_ways_out_is_taken_and_then_the_outer_again():
    code, out, _ = run("""
        with interruption.may_leave(save):
            with interruption.may_leave(broken): pass
            hit(signal.SIGTERM)
            time.sleep(60)
    """)
    assert (code, out.count("saving\n")) == (INTERRUPTED, 1)


def test_a_save_that_fails_has_its_own_exit_code():
    code, out, _ = run("""
        with interruption.may_leave(broken):
            hit(signal.SIGTERM)
            time.sleep(60)
    """)
    assert code == 74
    assert "no room" in out


@pytest.mark.parametrize(("second", "number"), [("SIGTERM", 15), ("SIGINT", 2)])
def test_a_second_signal_ends_it_even_while_saving(second, number):
    code, _, _ = run(f"""
        with interruption.may_leave(lambda: time.sleep(60)):
            hit(signal.SIGTERM)
            while not interruption.requested: time.sleep(0.01)
            hit(signal.{second})
            time.sleep(60)
    """)
    assert code == 128 + number


def test_afterwards_signals_do_what_they_did_before():
    code, out, _ = run("pass", after="print(signal.getsignal(signal.SIGTERM) == before); hit(signal.SIGTERM)")
    assert (code, out) == (-15, "True\n")
