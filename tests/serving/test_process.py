"""`transfusion serve` as a process, loaded and told to end."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

import xla

REQUESTS = 24
TOKEN = "s3cret"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.slow
def test_a_loaded_server_loses_nothing_and_ends_when_all_is_done(tmp_path):
    workdir = str(tmp_path / "run")
    debug = ["--config", "configs/debug.py", "--config.loop.evaluate_every=0", "--config.loop.sample_every=0"]
    program = [sys.executable, "-m", "transfusion_jax.cli"]
    one_device = os.environ | xla.ONE_DEVICE
    train = [*program, "train", *debug, "--config.steps=2", "--workdir", workdir]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL, env=one_device)
    serve = [*program, "serve", "--workdir", workdir, "--port", "0", "--host", "0.0.0.0"]
    with_token = one_device | {"TRANSFUSION_TOKEN": TOKEN}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=with_token) as process:
        try:
            link = next(line for line in process.stdout if line.startswith("serving at")).split()[-1]
            url, _, token = link.partition("/#token=")
            assert token == TOKEN
            assert ask(url, 0)["reason"] == "images"  # compiled
            with urllib.request.urlopen(f"{url}/health") as answer:  # warm
                assert json.load(answer) == {"status": "ok"}
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{url}/metrics")
            with ThreadPoolExecutor(REQUESTS) as pool:
                answers = [pool.submit(ask, url, seed) for seed in range(REQUESTS)]
                while waiting(url) < 2:
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                made = [answer.result() for answer in answers]
            assert len({answer["parts"][0]["image"] for answer in made}) == REQUESTS
            assert process.wait(600) == 0
        finally:
            process.kill()


def ask(url, seed):
    """One image, with many steps."""
    body = {"parts": [{"type": "text", "text": "a"}], "follow": "image", "steps": 300, "seed": seed}
    request = urllib.request.Request(
        f"{url}/v1/generate", json.dumps(body).encode(), {"Content-Type": "application/json"} | SHOWN
    )
    with urllib.request.urlopen(request, timeout=6000) as answer:
        return json.load(answer)


def waiting(url):
    with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=SHOWN), timeout=600) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("transfusion_waiting ")).split()[1])
