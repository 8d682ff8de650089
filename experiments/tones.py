"""Tones whose pitch is known: sums of harmonics of many timbres, with vibrato and noise.

    x(t) = sum_k a_k sin(k phi(t) + p_k) + noise,        phi'(t) = 2 pi f0 2^(d sin(2 pi v t + q) / 1200)

f0 is spread evenly in pitch over 65 to 1000 Hz; the pitch is that in the middle of the frame. a_k falls as k^-s, with s
from 0.5 to 2, times a chance of its own; a fourth of the tones have hardly any even harmonics. Vibrato has v of 4 to
7 Hz and a depth d of up to 50 cents. Noise is white.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.crepe import FRAME, SAMPLE_RATE

LOWEST, HIGHEST = 65.0, 1000.0  # Hz
HARMONICS = 16  # at most, those below half the sample rate
SNR = (0.0, 30.0)  # dB, from which tones have theirs unless it is given
REFERENCE = 10.0  # Hz, of 0 cents


class Tones(NamedTuple):
    """Frames of tones."""

    frames: Tensor  # (N, 1024), each of mean 0 and deviation 1
    cents: Tensor  # (N,), pitch in the middle, above 10 Hz


def tones(count: int, seed: int, snr: float | None = None) -> Tones:
    """Return tones that the seed decides.

    Args:
        count: N.
        seed: other seeds give other tones.
        snr: power of the tone to that of the noise, in dB; left out, each tone has one of 0 to 30 dB.
    """
    generator = torch.Generator().manual_seed(seed)

    def chance(low=0.0, high=1.0, width=1):
        return low + (high - low) * torch.rand(count, width, generator=generator)

    base = LOWEST * (HIGHEST / LOWEST) ** chance()  # (N, 1), Hz
    time = (torch.arange(FRAME) - FRAME // 2) / SAMPLE_RATE  # (1024,), s
    vibrato, start = 2 * math.pi * chance(4, 7), 2 * math.pi * chance()
    depth = chance(0, 50) / 1200
    frequency = base * 2 ** (depth * torch.sin(vibrato * time + start))  # (N, 1024)
    phase = 2 * math.pi * frequency.double().cumsum(1).float() / SAMPLE_RATE

    harmonics = torch.arange(1, HARMONICS + 1)
    amplitudes = harmonics ** -chance(0.5, 2) * chance(0.2, 1, HARMONICS)  # (N, 16)
    hollow = (chance() < 0.25) & (harmonics % 2 == 0)
    amplitudes = amplitudes * torch.where(hollow, 0.05, 1.0) * (harmonics * base < 0.45 * SAMPLE_RATE)
    phases = harmonics[:, None] * phase[:, None] + 2 * math.pi * chance(width=HARMONICS)[..., None]  # (N, 16, 1024)
    clean = (amplitudes[..., None] * phases.sin()).sum(1)
    noise = torch.randn(count, FRAME, generator=generator)
    ratio = chance(*SNR) if snr is None else torch.full((count, 1), float(snr))
    frames = clean / clean.square().mean(1, keepdim=True).sqrt() + 10 ** (-ratio / 20) * noise
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    return Tones(frames, 1200 * torch.log2(frequency[:, FRAME // 2] / REFERENCE))


def share_within(found: Tensor, cents: Tensor, tolerance: float = 50.0) -> float:
    """Return the share of pitches, in per cent, that are off by less than `tolerance` cents.

    Args:
        found, cents: (N,), in cents.
    """
    return 100 * ((found - cents).abs() < tolerance).double().mean().item()
