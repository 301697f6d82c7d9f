"""VPP's new-flow table in plain Python, straight from its description: the model that the compiled one is held to."""

from __future__ import annotations

from collections.abc import Sequence

WORD = (1 << 64) - 1
PRIMES = {
    1: 0x9E3779B185EBCA87,
    2: 0xC2B2AE3D27D4EB4F,
    3: 0x165667B19E3779F9,
    4: 0x85EBCA77C2B2AE63,
    5: 0x27D4EB2F165667C5,
}
SEED = 0x9E3779B97F4A7C13


def xxh64(word: int, seed: int = SEED) -> int:
    """XXH64 of one 64-bit word."""

    def rotate(value: int, bits: int) -> int:
        return ((value << bits) | (value >> (64 - bits))) & WORD

    value = (seed + PRIMES[5] + 8) & WORD
    value ^= (rotate(word * PRIMES[2] & WORD, 31) * PRIMES[1]) & WORD
    value = (rotate(value, 27) * PRIMES[1] + PRIMES[4]) & WORD
    value ^= value >> 33
    value = value * PRIMES[2] & WORD
    value ^= value >> 29
    value = value * PRIMES[3] & WORD
    return value ^ (value >> 32)


def plain_table(ases: Sequence[tuple[bytes, int]], length: int) -> list[int]:
    """Bucket by bucket the index of the AS; -1 everywhere when none has weight."""
    replicas = sorted((r, key, index) for index, (key, weight) in enumerate(ases) for r in range(weight))
    table = [-1] * length
    if not replicas:
        return table
    mask = length - 1
    walks = []
    for r, key, index in replicas:
        seed = xxh64(int.from_bytes(key[:8], "little") ^ int.from_bytes(key[8:], "little") ^ r)
        walks.append([(seed >> 32) & mask, ((seed & 0xFFFFFFFF) | 1) & mask, index])
    free = length
    while True:
        for walk in walks:
            while table[walk[0]] >= 0:
                walk[0] = (walk[0] + walk[1]) & mask
            table[walk[0]] = walk[2]
            free -= 1
            if not free:
                return table
