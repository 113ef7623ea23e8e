import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.phantom.film import ToneWindow, blur, develop, expose, tone_window
from shards.phantom.patients import Exposure, draw_exposure
from tests.shards.phantom.settings import phantom_params
from tests.support.examples import examples


@pytest.fixture
def exposure() -> Exposure:
    return draw_exposure(phantom_params().exposure, np.random.default_rng(0))


def wedge(size: int = 64) -> torch.Tensor:
    """Attenuation from air on the left to dense tissue on the right."""
    return torch.linspace(0, 7, size).expand(size, size).contiguous()


@given(value=st.floats(0.01, 5), sigma_px=st.floats(0, 40))
@examples(0.3)
def test_blur_keeps_a_flat_image(value: float, sigma_px: float) -> None:
    image = torch.full((24, 24), value)
    torch.testing.assert_close(blur(image, sigma_px), image)


def test_blur_has_the_sigma_it_is_asked_for() -> None:
    point = torch.zeros(65, 65)
    point[32, 32] = 1
    spread = blur(point, 4.0)
    place = torch.arange(65.0) - 32
    assert float((spread.sum(0) * place**2).sum()) == pytest.approx(16, rel=1e-3)


def test_exposed_air_is_black_and_denser_is_brighter(exposure: Exposure) -> None:
    quiet = dataclasses.replace(exposure, noise=0.0, scatter=0.0)
    attenuation = wedge()
    signal = develop(attenuation, quiet)
    image = expose(signal, attenuation, tone_window(signal, attenuation), quiet)
    assert (image[:, 0] == 0).all()
    assert image[32, -1] == image.max() > 240
    assert (np.diff(image[32, 8:56].astype(int)) >= 0).all()


def test_the_window_alone_decides_the_tone(exposure: Exposure) -> None:
    attenuation = wedge()
    signal = develop(attenuation, exposure)
    window = tone_window(signal, attenuation)
    wider = ToneWindow(window.low, window.high + 2)
    assert expose(signal, attenuation, wider, exposure).mean() < expose(signal, attenuation, window, exposure).mean()


def test_noise_is_that_of_the_seed(exposure: Exposure) -> None:
    attenuation = wedge()
    other = dataclasses.replace(exposure, noise_seed=exposure.noise_seed + 1)
    assert torch.equal(develop(attenuation, exposure), develop(attenuation, exposure))
    assert not torch.equal(develop(attenuation, exposure), develop(attenuation, other))
