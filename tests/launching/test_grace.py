"""The time that a job is given to save."""

from dataclasses import replace

from transfusion_jax import config as configs
from transfusion_jax import flops
from transfusion_jax.launching.grace import MARGIN, SLOWER, UNKNOWN, grace_seconds
from transfusion_jax.planning.plan import HOST_RATE


def test_more_hosts_need_less_time_and_an_average_of_the_weights_more():
    config = configs.load("configs/paper.py:7b")
    assert config.optimizer.ema_decay == 0
    seconds = SLOWER * 3 * 4 * flops.count_parameters(config.model).total / HOST_RATE  # the weights and two moments
    assert 0 <= grace_seconds(config, hosts=1) - MARGIN - seconds < 1
    assert 0 <= grace_seconds(config, hosts=64) - MARGIN - seconds / 64 < 1
    averaged = replace(config, optimizer=replace(config.optimizer, ema_decay=0.99))
    assert 0 <= grace_seconds(averaged, hosts=1) - MARGIN - seconds * 4 / 3 < 1


def test_without_a_config_it_is_a_fixed_time():
    assert grace_seconds(None, hosts=4) == UNKNOWN
