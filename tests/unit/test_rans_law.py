from __future__ import annotations

import math

import numpy as np
import pytest

from operators import rans, rans_bits, rans_cluster, rans_freq, rans_law, rans_tail
from operators.errors import HilbertflowError


def test_the_powers_and_fractions_are_the_exact_ones_rounded() -> None:
    for i, fraction in enumerate(rans_law._MANTISSAS.tolist()):
        assert (2 * fraction - 1) ** 64 <= 2 ** (i + 64 * 11) < (2 * fraction + 1) ** 64
    for row, quarters in zip(rans_law._POWERS.tolist(), range(3, 11), strict=True):
        for t in (0, 1, 7, 227):
            assert (row[t] + 4096) ** 4 <= (2 * t + 1) ** quarters << 48 < (row[t] + 4097) ** 4


@pytest.mark.parametrize(("exponent", "power"), [(1.0, 1), (1.5, 3), (2.0, 5)])
@pytest.mark.parametrize("width", [3.0, 12.0, 40.0])
def test_a_law_finds_the_exponent_of_its_source(exponent: float, power: int, width: float) -> None:
    share = np.exp(-(((2 * np.arange(128) + 1) / width) ** exponent))
    counts = np.zeros(228, np.int32)
    counts[:128] = np.rint(65536 * share / share.sum())
    last, weights = int(np.flatnonzero(counts)[-1]), np.empty(228, np.int32)
    found, slope = rans_law.fit_law(counts, int(counts.sum()), last, weights)
    assert abs(found - power) <= 1  # a quarter
    rans_law.law_weights(found, slope, last, weights)
    given, kept = weights[: last + 1] / weights.sum(), counts[: last + 1] / counts.sum()
    some = kept > 0
    lost = float((kept[some] * np.log2(kept[some] / given[some])).sum())
    assert lost < 0.001


@pytest.mark.parametrize("last", [0, 3, 60, 227])
def test_any_law_gives_every_token_a_slot(last: int) -> None:
    weights, freq = np.empty(228, np.int32), np.empty(228, np.int32)
    for power in range(1 << rans_law.POWER_BITS):
        for slope in (0, 1, 300, 511, 700, 1023):
            rans_law.law_weights(power, slope, last, weights)
            assert (weights[: last + 1] > 0).all() and not weights[last + 1 :].any()
            rans_freq.frequencies(weights, freq)
            assert freq.sum() == 4096 and (freq[: last + 1] > 0).all()


def test_a_gaussian_takes_a_law_and_a_table_without_one_is_listed() -> None:
    points = np.arange(128) + 0.5
    counts = np.zeros(228, np.int32)
    counts[:128] = np.rint(4000 * np.exp(-((points / 16) ** 2) / 2))
    odd = np.zeros(228, np.int32)
    odd[[3, 9, 40]] = 20_000
    for histogram, most in ((counts, 28), (odd, 400)):
        out, weights, got = np.zeros(700, np.uint8), np.empty(228, np.int32), np.empty(228, np.int32)
        end = rans_freq.put_table(out, 0, histogram, 0, weights)
        assert end <= most and rans_freq.get_table(out, 0, got) == (end, 0)
        np.testing.assert_array_equal(weights, got)
        law = rans_bits.get(out, 13, 2) == rans_freq.LAW
        assert law == (histogram is counts)


@pytest.mark.parametrize("deviation", [3.0, 9.0, 15.0, 22.0])
def test_noise_on_a_lattice_is_coded_within_a_two_hundredth_bit_of_its_entropy_tables_and_all(deviation: float) -> None:
    far = np.abs(np.random.default_rng(3).normal(size=(256, 256))) * deviation
    plane = np.floor(far).astype(np.uint16)
    chunk = rans.encode(plane)
    assert chunk[0] == rans.LEAN
    np.testing.assert_array_equal(rans.decode(chunk, plane.shape, plane.dtype), plane)
    shares = np.unique(plane, return_counts=True)[1] / plane.size
    entropy = -float((shares * np.log2(shares)).sum())
    assert 8 * len(chunk) / plane.size < entropy + 0.005
    assert rans_bits.get(np.frombuffer(chunk, np.uint8), 16, 1) == (deviation > 5)


def test_what_folds_unfolds() -> None:
    rng = np.random.default_rng(4)
    values = np.minimum(rng.geometric(0.08, 50_000) - 1, 127).astype(np.uint32)
    out, before = np.zeros(5000, np.uint8), values.copy()
    tokens, counts = values.astype(np.uint8), np.zeros((49, rans_bits.TOKENS), np.int32)
    rans_cluster.block_counts(tokens, 1024, counts)
    begin, width, lows = rans_tail.fold_tail(values, tokens, 1024, counts)
    np.testing.assert_array_equal(tokens, values)
    assert (counts.sum(axis=0)[:128] == np.bincount(values, minlength=128)).all()
    assert rans_tail.put_tail(out, 5, begin, width, lows) > 5
    low, begin, width, count = rans_tail.get_tail(out, 5)
    assert width > 0 and count == (before >= begin).sum() and values.max() < before.max()
    for dtype in (np.uint8, np.uint32):
        back = values.astype(dtype)
        assert rans_tail.unfold_tail(back, begin, width, count, out, low) == 0
        np.testing.assert_array_equal(back, before)
        for wrong in (count - 1, count + 1):
            assert rans_tail.unfold_tail(values.astype(dtype), begin, width, wrong, out, low) < 0


def test_every_changed_byte_of_a_lean_chunk_is_told() -> None:
    plane = np.rint(np.random.default_rng(5).normal(size=(64, 64)) * 15).astype(np.int16)
    chunk, told = rans.encode(plane), 0
    assert chunk[0] == rans.LEAN
    for at in range(len(chunk)):
        for bit in (0, 3, 7):
            bad = bytearray(chunk)
            bad[at] ^= 1 << bit
            try:
                back = rans.decode(bytes(bad), plane.shape, plane.dtype)
            except HilbertflowError:
                told += 1
            else:
                assert np.array_equal(back, plane) or at == 0 or bad[0] != rans.LEAN, (at, bit)
    assert told >= 3 * len(chunk) - 24
    for size in (0, 1, 2, 3, 10, 40, len(chunk) - 2):
        with pytest.raises(HilbertflowError):
            rans.decode(chunk[:size], plane.shape, plane.dtype)


def test_states_are_written_by_their_length() -> None:
    state = np.array([1 << 16, (1 << 32) - 1, 123_456_789, 70_000], np.uint32)
    out = np.zeros(40, np.uint8)
    end = rans_bits.put_states(out, 3, state)
    assert end == 3 + sum(4 + int(s).bit_length() - 1 for s in state) and math.isfinite(end)
