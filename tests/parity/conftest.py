"""Parity tests import PyTorch: they are collected only where asked for, and then a missing library fails."""


def pytest_ignore_collect(collection_path, config):
    del collection_path
    return True if "not parity" in config.getoption("markexpr") else None
