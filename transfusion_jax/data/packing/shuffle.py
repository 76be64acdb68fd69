"""Pseudo-random permutations of any size that take no memory: any entry can be asked for alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LARGEST = 2**62
_ROUNDS = {1 << 16: 24, LARGEST + 1: 6}  # below a size: small networks mix slowly, and cost little
_CHUNK = 1 << 14  # indices at a time: what fits a processor's cache


def shuffled(
    index: np.ndarray | int, size: int, seed: int | Sequence[int], turn: np.ndarray | int = 0
) -> np.ndarray:
    """Entries of a permutation of `range(size)`, the same on every platform.

    A Feistel network whose two halves are digits to bases near √size; what falls outside the range walks on.

    Args:
        index: which entries, any shape, each in `range(size)`.
        size: up to 2**62.
        seed: one number or several, none negative.
        turn: each turn is a permutation of its own; one number, or one for each index.
    """
    if not 0 <= size <= LARGEST:
        raise ValueError(f"a permutation of {size} entries")
    index = np.asarray(index, np.int64)
    flat = index.reshape(-1).astype(np.uint64)
    turns = np.asarray(turn, np.uint64).astype(np.uint32).reshape(-1)
    rounds = next(number for bound, number in _ROUNDS.items() if size < bound)
    bases = np.random.SeedSequence(seed).generate_state(rounds)
    for begin in range(0, len(flat), _CHUNK):
        here = slice(begin, begin + _CHUNK)
        mixed = _mix((turns if np.ndim(turn) == 0 else turns[here]) + np.uint32(0x9E3779B9))
        flat[here] = _walk(flat[here], size, _mix(mixed ^ bases[:, None]))
    return flat.view(np.int64).reshape(index.shape)


def _walk(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    high = math.isqrt(size - 1) + 1  # the root, rounded up
    bases = (high, -(-size // high))
    index = _network(index, bases, keys)
    while len(outside := np.flatnonzero(index >= size)):
        index[outside] = _network(index[outside], bases, keys if keys.shape[1] == 1 else keys[:, outside])
    return index


def _network(index: np.ndarray, bases: tuple[int, int], keys: np.ndarray) -> np.ndarray:
    high = index // np.uint64(bases[1])
    low = index - high * np.uint64(bases[1])
    halves = [high.astype(np.uint32), low.astype(np.uint32)]
    for number, key in enumerate(keys):
        changed = number % 2
        base = np.uint32(bases[changed])
        drawn = np.multiply(_mix(halves[1 - changed] ^ key), base, dtype=np.uint64) >> np.uint64(32)
        total = halves[changed] + drawn.astype(np.uint32)
        halves[changed] = np.minimum(total, total - base)  # modulo the base, for less than nothing is very large
    return halves[0].astype(np.uint64) * np.uint64(bases[1]) + halves[1]


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3: each bit of the result depends on each bit of the value."""
    value = value ^ (value >> np.uint32(16))
    value *= np.uint32(0x85EBCA6B)
    value ^= value >> np.uint32(13)
    value *= np.uint32(0xC2B2AE35)
    value ^= value >> np.uint32(16)
    return value
