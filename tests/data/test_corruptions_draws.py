"""Counter-based random numbers: pinned values, independence, distributions."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from shiftnorm.data.corruptions.draws import Stream

# Standard errors allowed of a sum of many independent terms; in all, some ten thousand sums are compared.
LIMIT = 5.0


def stream(seed: int = 0, name: str = "fog", severity: int = 3, n: int = 64, start: int = 0) -> Stream:
    return Stream(seed, name, severity, torch.arange(start, start + n))


def test_pinned_values() -> None:
    """Published results depend on these: a change of any of them changes every record."""
    three = Stream(0, "fog", 3, torch.tensor([0, 1, 49999]))
    assert three.bits(3).tolist() == [
        [-4927338107004754203, -3068484597006178134, -7968322598928481033],
        [-3605885731760776213, 4620014657360269093, -4046362607015542478],
        [3619422902529624258, -6683994986632263390, 8493652530505135962],
    ]
    assert three.integers(0, 1000, 4).tolist() == [[914, 130, 240, 874], [388, 303, 752, 684], [69, 571, 819, 574]]
    assert three.uniform(3).mul(2**24).long().tolist() == [
        [13795357, 13382544, 2062753],
        [16543150, 13271190, 5062568],
        [3484410, 2139453, 4582614],
    ]
    expected = [
        [1.0044869184494019, 0.8970150351524353, 0.07272231578826904],
        [-0.49629974365234375, 1.290292501449585, 0.7194182872772217],
        [-0.17461475729942322, 1.8888471126556396, -2.0715184211730957],
    ]
    torch.testing.assert_close(three.normal(3), torch.tensor(expected), rtol=1e-6, atol=1e-7)
    assert stream(-7, "snow", 5, 1, 2).bits(2).tolist() == [[7104267843813283797, 8910628196703277940]]
    assert stream(2**70, "snow", 5, 1, 2).bits(2).tolist() == [[-1115551938530786740, 6285938975945047891]]


def in_whole_numbers(seed: int, name: str, severity: int, index: int, call: int, position: int) -> int:
    """One word, in Python's integers."""

    def signed(z: int) -> int:
        z &= 2**64 - 1
        return z - 2**64 if z >> 63 else z

    def mix(z: int) -> int:
        z = signed(z)
        z = signed((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9)
        z = signed((z ^ (z >> 27)) * 0x94D049BB133111EB)
        return signed(z + (z >> 31))

    step = 0x9E3779B97F4A7C15
    digest = hashlib.blake2b(f"{seed}/{name}/{severity}".encode(), digest_size=8).digest()
    key = mix(index * step + int.from_bytes(digest, "little"))
    return mix(mix(key + call * 0xD6E8FEB86659FD93) + position * step)


def test_words_as_defined() -> None:
    for seed, name, severity in ((0, "fog", 1), (-3, "snow", 5), (2**80, "frost", 2)):
        made = stream(seed, name, severity, n=5, start=1000)
        for call in (1, 2, 3):
            words = made.bits(7)
            for image in range(5):
                expected = [in_whole_numbers(seed, name, severity, 1000 + image, call, p) for p in range(7)]
                assert words[image].tolist() == expected


def test_an_image_has_the_same_numbers_in_every_batch() -> None:
    def numbers(indices: list[int]) -> list[Tensor]:
        made = Stream(4, "snow", 2, torch.tensor(indices))
        return [made.uniform(3, 5), made.normal(7), made.integers(-4, 4, 2, 2), made.normal(), made.words(3)]

    whole = numbers([0, 1, 2, 3, 10**6])
    for some in ([3], [10**6, 0], [2, 1]):
        places = [[0, 1, 2, 3, 10**6].index(i) for i in some]
        for all_of_them, ours in zip(whole, numbers(some), strict=True):
            assert torch.equal(all_of_them[places], ours)


def test_shapes_and_dtypes() -> None:
    made = stream(n=3)
    for shape in ((), (1,), (5,), (2, 3, 4), (0,)):
        assert made.uniform(*shape).shape == made.normal(*shape).shape == (3, *shape)
        assert made.integers(0, 5, *shape).shape == made.words(*shape).shape == (3, *shape)
    assert made.uniform(2).dtype == made.normal(2).dtype == torch.float32
    assert made.integers(0, 2, 2).dtype == torch.int64 and made.words(2).dtype == torch.int32
    assert stream(n=0).normal(3, 4).shape == (0, 3, 4)
    assert len(made) == 3


def excess(counts: Tensor, expected: Tensor | float | None = None) -> float:
    """By how many standard deviations chi-square is off its mean."""
    expected = counts.sum() / counts.numel() if expected is None else expected
    freedom = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def strongest(a: Tensor, b: Tensor) -> float:
    """The strongest correlation of a bit of one with a bit of the other, in standard errors."""
    first, second = (
        torch.stack([(words.flatten() >> bit) & 1 for bit in range(64)]).float().mul_(2).sub_(1) for words in (a, b)
    )
    correlation = first @ second.T / first.shape[1] ** 0.5
    if a is b:
        correlation.fill_diagonal_(0)
    return float(correlation.abs().max())


def test_every_bit_is_fair_and_on_its_own() -> None:
    words = stream(n=64).bits(4096)
    for shift in range(0, 64, 8):
        assert abs(excess(torch.bincount((words >> shift & 255).flatten(), minlength=256).double())) < LIMIT
    assert strongest(words, words) < LIMIT
    for bit in range(64):
        ones = (words >> bit & 1).double()
        assert abs(float(ones.mean()) - 0.5) * 2 * ones.numel() ** 0.5 < LIMIT


def test_neighbours_have_nothing_to_do_with_each_other() -> None:
    words = stream(n=64).bits(2048)
    assert strongest(words[:-1], words[1:]) < LIMIT
    for step in (1, 2, 64, 1024):
        assert strongest(words[:, :-step], words[:, step:]) < LIMIT
    twice = stream(n=64)
    others = [stream(seed=1), stream(severity=4), stream(name="snow"), stream(start=64), stream(start=2**32), twice]
    twice.bits(1)
    for other in others:
        assert strongest(words, other.bits(2048)) < LIMIT
    # Four corners of a square, whose counters are linearly dependent.
    square = words[:-1, :-1] ^ words[1:, :-1] ^ words[:-1, 1:] ^ words[1:, 1:]
    for bit in range(64):
        ones = (square >> bit & 1).double()
        assert abs(float(ones.mean()) - 0.5) * 2 * ones.numel() ** 0.5 < LIMIT
    for shift in (0, 28, 56):
        pairs = (words[:, :-1] >> shift & 255) * 256 + (words[:, 1:] >> shift & 255)
        assert abs(excess(torch.bincount(pairs.flatten(), minlength=65536).double())) < LIMIT


def test_a_long_stream_does_not_repeat() -> None:
    words = stream(n=1).bits(2**20)
    assert words.unique().numel() == 2**20
    # Pieces of 36 bits: as many collide as chance makes, 2**40 / 2**37 = 8.
    for shift in (0, 14, 28):
        assert 0 < 2**20 - (words >> shift & (2**36 - 1)).unique().numel() < 24


def test_uniform() -> None:
    u = stream().uniform(2**14).double().flatten()
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) * (12 * u.numel()) ** 0.5 < LIMIT
    assert abs(excess(torch.histc(u, 1000, 0, 1))) < LIMIT
    # The finest bits too.
    assert abs(excess(torch.bincount((u * 2**24).long() & 1023, minlength=1024).double())) < LIMIT


def test_normal() -> None:
    z = stream().normal(2**14).double()
    n = z.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - mean) * math.sqrt(n / variance) < LIMIT
    shares = torch.special.ndtr(z.flatten())
    assert abs(excess(torch.histc(shares, 1000, 0, 1))) < LIMIT
    for size in (3.0, 4.0, 4.5):
        expected = n * math.erfc(size / math.sqrt(2))
        assert abs(int((z.abs() > size).sum()) - expected) < LIMIT * math.sqrt(expected)
    # The two of a pair, and neighbours.
    half = z.shape[1] // 2
    for a, b in ((z[:, :half], z[:, half:]), (z[:, 1:], z[:, :-1]), (z[1:], z[:-1])):
        for p, q in ((1, 1), (2, 2), (1, 2)):
            x, y = a**p - (p - 1), b**q - (q - 1)
            assert abs(float((x * y).mean())) * math.sqrt(x.numel()) < LIMIT * 2 ** ((p + q - 2) / 2)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (-4, 4), (0, 5), (3, 1000)])
def test_integers(low: int, high: int) -> None:
    drawn = stream().integers(low, high, 2**12).flatten()
    assert int(drawn.min()) == low and int(drawn.max()) == high - 1
    if high - low > 1:
        assert abs(excess(torch.bincount(drawn - low).double())) < LIMIT


def test_integers_from_a_wide_range() -> None:
    drawn = stream().integers(0, 2**31, 2**12)
    assert float(drawn.min()) < 2**31 * 1e-4 and float(drawn.max()) > 2**31 * (1 - 1e-4)
    for low, high in ((3, 3), (3, 2), (0, 2**31 + 1)):
        with pytest.raises(ValueError, match=rf"expected low < high, .* got low={low} and high={high}"):
            stream().integers(low, high, 1)
