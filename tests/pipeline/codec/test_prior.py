"""The factorised prior against CompressAI's EntropyBottleneck, and what tables are made from."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from pipeline.codec.counts import count_parameters
from pipeline.codec.prior import LIKELIHOOD_FLOOR, FactorisedPrior
from pipeline.errors import TrainingError

CHANNELS = 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1802)


def trained_prior(channels: int = CHANNELS) -> FactorisedPrior:
    """A prior as training may leave it: lopsided, each channel its own width and place."""
    prior = FactorisedPrior(channels)
    with torch.no_grad():
        for parameters in (prior.matrices, prior.biases, prior.factors):
            for parameter in parameters:
                parameter.add_(0.5 * torch.randn_like(parameter))
        prior.biases[0].add_(2 * torch.randn(channels, 1, 1))
    return prior


def latent_of(prior: FactorisedPrior, batch: int = 2, side: int = 16) -> torch.Tensor:
    """A latent whose symbols are drawn from the prior's own probabilities."""
    random = np.random.default_rng(7)
    size = (batch, side, side)
    channels = []
    for channel in prior.channel_probabilities(smallest=0.0):
        shares = channel.probabilities / channel.probabilities.sum()
        channels.append(channel.offset + random.choice(len(shares), size, p=shares))
    within_step = random.uniform(-0.4, 0.4, (batch, prior.channels, side, side))
    symbols = torch.from_numpy(np.stack(channels, axis=1) + within_step).float()
    return symbols + prior.medians[:, None, None]


@pytest.mark.parametrize(("channels", "parameters"), [(64, 3_904), (24, 1_464)])
def test_prior_has_61_parameters_a_channel(channels: int, parameters: int) -> None:
    assert count_parameters(FactorisedPrior(channels)) == parameters


def test_likelihoods_equal_compressai_with_the_same_parameters(compressai_entropy: ModuleType) -> None:
    """In float32 up to the cancellation of CompressAI's difference, in float64 to twelve digits."""
    prior = trained_prior()
    reference = compressai_entropy.EntropyBottleneck(CHANNELS)
    reference.load_state_dict(prior.state_dict(), strict=False)
    latent = 15 * torch.randn(2, CHANNELS, 9, 7)
    quantised, expected = reference(latent, training=False)
    assert torch.equal(prior.quantize(latent, "straight_through"), quantised)
    torch.testing.assert_close(prior.likelihood(quantised), expected, rtol=1e-4, atol=2e-7)

    reference.double()
    noisy = latent.double() + torch.rand(latent.shape, dtype=torch.float64)
    with torch.no_grad():
        values = noisy.transpose(0, 1).reshape(CHANNELS, 1, -1)
        mass = reference._likelihood(values)[0].reshape(CHANNELS, 2, 9, 7).transpose(0, 1)
        torch.testing.assert_close(prior.likelihood(noisy), mass.clamp_min(LIKELIHOOD_FLOOR), rtol=1e-9, atol=1e-12)


def test_gradients_equal_compressai_with_the_same_parameters(compressai_entropy: ModuleType) -> None:
    prior = trained_prior()
    reference = compressai_entropy.EntropyBottleneck(CHANNELS)
    reference.load_state_dict(prior.state_dict(), strict=False)
    latent = torch.randn(2, CHANNELS, 5, 5, requires_grad=True)
    logarithm = prior.likelihood(latent).log().sum()
    ours = torch.autograd.grad(logarithm, [latent, *prior.matrices, *prior.factors])
    values = latent.transpose(0, 1).reshape(CHANNELS, 1, -1)
    mass = reference.likelihood_lower_bound(reference._likelihood(values)[0])
    theirs = torch.autograd.grad(mass.log().sum(), [latent, *reference.matrices, *reference.factors])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_fitted_quantiles_equal_compressai_bisection(compressai_entropy: ModuleType) -> None:
    prior = trained_prior()
    reference = compressai_entropy.EntropyBottleneck(CHANNELS)
    reference.load_state_dict(prior.state_dict(), strict=False)
    prior.fit_quantiles()
    reference.update(force=True, update_quantiles=True)
    torch.testing.assert_close(prior.quantiles, reference.quantiles, rtol=1e-3, atol=1e-2)
    assert not prior.quantiles.requires_grad


def test_likelihood_is_float32_under_autocast() -> None:
    prior, latent = trained_prior(), torch.randn(1, CHANNELS, 4, 4)
    expected = prior.likelihood(latent)
    with torch.autocast("cpu", torch.bfloat16):
        likelihood = prior.likelihood(latent)
    assert likelihood.dtype == torch.float32
    assert torch.equal(likelihood, expected)


def test_likelihood_has_a_floor_that_still_passes_gradients() -> None:
    prior = FactorisedPrior(1)
    latent = torch.full((1, 1, 1, 1), 400.0, requires_grad=True)
    likelihood = prior.likelihood(latent)
    assert likelihood.item() == pytest.approx(LIKELIHOOD_FLOOR)
    (gradient,) = torch.autograd.grad(-likelihood.log().sum(), [latent])
    assert gradient.item() > 0  # descent moves the latent back to where there is mass


def test_bits_are_the_sum_over_a_frame() -> None:
    prior, latent = trained_prior(), torch.randn(3, CHANNELS, 4, 5).round()
    expected = [-np.log2(prior.likelihood(frame[None]).detach().numpy()).sum() for frame in latent]
    np.testing.assert_allclose(prior.bits(latent).detach().numpy(), expected, rtol=1e-5)


def test_quantize_noise_stays_within_half_a_step_and_follows_its_generator() -> None:
    prior, latent = trained_prior(), 5 * torch.randn(2, CHANNELS, 8, 8)
    first = prior.quantize(latent, "noise", torch.Generator().manual_seed(1))
    second = prior.quantize(latent, "noise", torch.Generator().manual_seed(1))
    assert torch.equal(first, second)
    assert (first - latent).abs().max() <= 0.5 + 1e-6
    assert (first - latent).std() == pytest.approx(1 / 12**0.5, rel=0.05)


def test_quantize_symbols_count_from_the_median() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    latent = 5 * torch.randn(2, CHANNELS, 8, 8)
    symbols = prior.quantize(latent, "symbols")
    assert symbols.dtype == torch.int32
    assert (prior.dequantize(symbols) - latent).abs().max() <= 0.5 + 1e-5
    assert not prior.quantize(prior.dequantize(torch.zeros_like(symbols)), "symbols").any()
    torch.testing.assert_close(prior.quantize(latent, "straight_through"), prior.dequantize(symbols))


def test_quantize_straight_through_has_the_gradient_of_the_identity() -> None:
    latent = torch.randn(1, CHANNELS, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(trained_prior().quantize(latent, "straight_through").sum(), [latent])
    assert torch.equal(gradient, torch.ones_like(latent))


def test_quantize_in_an_unknown_mode_raises() -> None:
    with pytest.raises(ValueError, match="dequantise"):
        FactorisedPrior(1).quantize(torch.zeros(1, 1, 1, 1), "dequantise")  # type: ignore[arg-type]


def test_fitted_quantiles_hold_their_mass() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    shares = torch.sigmoid(prior._logits(prior.quantiles.double()))[:, 0].detach().numpy()
    np.testing.assert_allclose(shares[:, 1], 0.5, atol=1e-6)
    np.testing.assert_allclose(shares[:, 0], prior.tail_mass / 2, rtol=0.01)
    assert np.all(shares[:, 2] > 1 - 0.51 * prior.tail_mass)


def test_fit_quantiles_finds_channels_far_from_zero() -> None:
    prior = FactorisedPrior(2)
    with torch.no_grad():
        prior.biases[0].add_(torch.tensor([-3000.0, 3000.0])[:, None, None])
    prior.fit_quantiles()
    assert prior.medians[0] > 1000
    assert prior.medians[1] < -1000


def test_fit_quantiles_of_a_diverged_prior_raises() -> None:
    prior = FactorisedPrior(2)
    with torch.no_grad():
        prior.biases[1].fill_(float("nan"))
    with pytest.raises(TrainingError):
        prior.fit_quantiles()


def test_coverage_of_the_priors_own_samples_is_full() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    coverage = prior.check_coverage(latent_of(prior))
    assert coverage.share == 1.0
    assert coverage.num_outside == 0


def test_coverage_names_the_channel_whose_symbols_lie_outside() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    latent = latent_of(prior)
    latent[:, 4] += 1e4
    coverage = prior.coverage(latent)
    assert coverage.channel_shares[4] == 0.0
    assert coverage.num_outside == latent[:, 4].numel()
    with pytest.raises(TrainingError, match="channel 4"):
        prior.check_coverage(latent)


def test_probabilities_before_fitting_raise() -> None:
    """The paper's code never fitted its quantiles: tables of 21 symbols, whatever the latent."""
    prior = trained_prior()
    with pytest.raises(TrainingError, match="fit_quantiles"):
        prior.channel_probabilities()


def test_probabilities_after_more_training_raise() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    with torch.no_grad():
        prior.biases[0].add_(1.0)
    with pytest.raises(TrainingError, match="fit_quantiles"):
        prior.channel_probabilities()
    with pytest.raises(TrainingError, match="fit_quantiles"):
        prior.check_coverage(torch.zeros(1, CHANNELS, 2, 2))


def test_probabilities_are_the_likelihoods_of_the_symbols() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    for index, channel in enumerate(prior.channel_probabilities()):
        assert channel.probabilities.dtype == np.float64
        assert channel.probabilities.sum() + channel.escape == pytest.approx(1.0, abs=1e-12)
        assert channel.probabilities.min() > 0
        symbols = torch.zeros(1, CHANNELS, 1, len(channel.probabilities), dtype=torch.float64)
        symbols[0, index, 0] = torch.arange(len(channel.probabilities)) + channel.offset
        with torch.no_grad():
            likelihood = prior.likelihood(symbols + prior.medians.double()[:, None, None])[0, index, 0]
        np.testing.assert_allclose(channel.probabilities, likelihood.numpy(), rtol=1e-6)


def test_probabilities_leave_rare_ends_to_the_escape() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    whole, trimmed = prior.channel_probabilities(smallest=0.0), prior.channel_probabilities(smallest=1e-3)
    for long, short in zip(whole, trimmed, strict=True):
        assert len(short.probabilities) < len(long.probabilities)
        assert short.escape > long.escape
        assert short.probabilities[0] >= 1e-3
        assert short.probabilities[-1] >= 1e-3


def test_probabilities_code_the_priors_samples_at_its_own_estimate() -> None:
    """What tables can reach is what training paid for: within a tenth of a percent, with rare escapes."""
    prior = trained_prior()
    prior.fit_quantiles()
    latent = latent_of(prior, batch=4, side=32)
    symbols = prior.quantize(latent, "symbols").numpy()
    bits, num_escapes = 0.0, 0
    for index, channel in enumerate(prior.channel_probabilities()):
        position = symbols[:, index].ravel() - channel.offset
        is_inside = (position >= 0) & (position < len(channel.probabilities))
        bits -= np.log2(channel.probabilities[position[is_inside]]).sum()
        num_escapes += int((~is_inside).sum())
    with torch.no_grad():
        estimate = float(prior.bits(prior.dequantize(torch.from_numpy(symbols))).sum())
    assert bits == pytest.approx(estimate, rel=1e-3)
    assert num_escapes < symbols.size / 5000


def test_probabilities_of_a_channel_that_never_moves_are_one_symbol() -> None:
    prior = FactorisedPrior(1)
    with torch.no_grad():
        prior.matrices[0].add_(1e6)  # a cumulative distribution as steep as a step, at 7.3
        prior.biases[0].copy_(-7.3 * torch.nn.functional.softplus(prior.matrices[0]))
    prior.fit_quantiles()
    (channel,) = prior.channel_probabilities()
    assert channel.offset == 0
    assert channel.probabilities.tolist() == pytest.approx([1.0], abs=1e-6)


def test_state_restores_probabilities() -> None:
    prior = trained_prior()
    prior.fit_quantiles()
    copy = FactorisedPrior(CHANNELS)
    copy.load_state_dict(prior.state_dict())
    for mine, other in zip(prior.channel_probabilities(), copy.channel_probabilities(), strict=True):
        assert mine.offset == other.offset
        assert np.array_equal(mine.probabilities, other.probabilities)
