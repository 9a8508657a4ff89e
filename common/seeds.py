"""Randomness folded from (seed, purpose, epoch or step), so that a resumed run needs no saved generator state."""

import hashlib


def fold(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for the stream (seed, *keys); different keys give unrelated streams."""
    return int.from_bytes(hashlib.sha256(repr((seed, *keys)).encode()).digest()[:8], "big") >> 1
