"""The time that a job is given to save."""

from dataclasses import replace

from transfusion_jax import config as configs
from transfusion_jax import flops
from transfusion_jax.launching.grace import MARGIN, UNKNOWN, WRITE_RATE, grace_seconds


def test_more_hosts_need_less_time_and_an_average_of_the_weights_more():
    config = configs.load("configs/paper.py:7b")
    assert config.optimizer.ema_decay == 0
    size = 3 * 4 * flops.count_parameters(config.model).total
    assert 0 <= grace_seconds(config, hosts=1) - MARGIN - size / WRITE_RATE < 1
    assert 0 <= grace_seconds(config, hosts=64) - MARGIN - size / (64 * WRITE_RATE) < 1
    averaged = replace(config, optimizer=replace(config.optimizer, ema_decay=0.99))
    assert 0 <= grace_seconds(averaged, hosts=1) - MARGIN - size * 4 / 3 / WRITE_RATE < 1


def test_without_a_config_it_is_a_fixed_time():
    assert grace_seconds(None, hosts=4) == UNKNOWN
