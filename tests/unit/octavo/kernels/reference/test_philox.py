"""Philox4x32-10 against Random123's known answers, and the Gumbel noise drawn from it."""

import math

import pytest
import torch

from octavo.kernels.philox import gumbel_noise, philox4x32


def _word(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param(
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            id="zeros",
        ),
        pytest.param(
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="digits-of-pi",
        ),
    ],
)
def test_philox_gives_the_papers_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = map(_word, counter)
    words = philox4x32((c0, c1, c2, c3), (_word(key[0]), _word(key[1])))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize(
    ("token_id", "counter", "word"),
    [(0, 0, 0), (5, 5, 0), (16, 0, 1), (63, 15, 3), (64, 16, 0), (149, 37, 1)],
)
def test_gumbel_noise_uses_every_word_of_a_counter(token_id: int, counter: int, word: int) -> None:
    seed, position = (0x299F31D0 << 32) | 0xA4093822, 77
    words = philox4x32(
        (_word(counter), _word(position), _word(0), _word(0)),
        (_word(0xA4093822), _word(0x299F31D0)),
    )
    u = ((int(words[word]) >> 8) + 0.5) * 2.0**-24
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position], dtype=torch.int32), 150)
    assert noise.shape == (1, 150)
    assert noise[0, token_id].item() == pytest.approx(-math.log(-math.log(u)), rel=1e-12)


def test_gumbel_noise_of_negative_seeds_reads_all_64_bits() -> None:
    seeds = torch.tensor([-1, -1 & 0xFFFFFFFF])
    noise = gumbel_noise(seeds, torch.zeros(2, dtype=torch.int32), 16)
    assert not torch.equal(noise[0], noise[1])


def test_gumbel_noise_has_the_gumbel_distributions_mean_and_variance() -> None:
    noise = gumbel_noise(torch.arange(20), torch.arange(20, dtype=torch.int32), 20_000)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
