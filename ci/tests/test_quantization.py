"""helpers.quantization against torch.ao's kernels, closed forms and plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import quantization as Q


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [True, 0, 17, 2.0, "4", None])
def test_bits_must_be_an_integer_in_range(bits):
    with pytest.raises(ValueError, match=r"bits must be an integer in 1\.\.16"):
        Q.check_bits(bits)


def test_round_ste_rounds_half_to_even_and_passes_the_gradient():
    x = torch.tensor([0.5, 1.5, -0.5, 2.4], requires_grad=True)
    y = Q.round_ste(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert y.tolist() == [0, 2, 0, 2]
    assert x.grad.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_fake_quantize_is_torchs_kernel(bits, axis):
    x = randn(6, 8, 5)
    scale, zero_point = Q.minmax_qparams(x, bits, axis=axis)
    q = 2**bits - 1
    if axis is None:
        theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), 0, q)
    else:
        theirs = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), axis, 0, q)
    torch.testing.assert_close(Q.fake_quantize(x, scale, zero_point, bits, axis=axis), theirs)


def test_fake_quantize_gradients_are_torchs_learnable_kernel():
    x, scale = (2 * randn(200)).requires_grad_(), torch.tensor([0.21], requires_grad=True)
    zero_point, upstream = torch.tensor([7.0]), randn(200, seed=1)
    Q.fake_quantize(x, scale, zero_point, 4).backward(upstream)
    ours = x.grad.clone(), scale.grad.clone()
    x.grad = scale.grad = None
    learnable = torch._fake_quantize_learnable_per_tensor_affine
    learnable(x, scale, zero_point, 0, 15, 1.0).backward(upstream)
    torch.testing.assert_close(ours, (x.grad, scale.grad))
    assert 0 < (x.grad == 0).sum() < 200  # some values lie outside of the range


def test_zero_points_outside_of_the_codes_are_allowed():
    x = torch.linspace(3.0, 4.0, 16)
    y = Q.fake_quantize(x, torch.tensor(1 / 15), torch.tensor(-45.0), 4)
    torch.testing.assert_close(y, x)


@pytest.mark.parametrize("shape", [(3,), (6, 1)])
def test_fake_quantize_names_the_wrong_shape(shape):
    with pytest.raises(ValueError, match="one value per index of axis 0"):
        Q.fake_quantize(randn(6, 8), torch.ones(shape), torch.zeros(shape), 4, axis=0)
    with pytest.raises(ValueError, match="without axis"):
        Q.fake_quantize(randn(6, 8), torch.ones(6), torch.zeros(6), 4)


@settings(max_examples=60, deadline=None)
@given(st.floats(-5, 5), st.floats(0.01, 9), st.integers(1, 8), st.integers(0, 99))
def test_uniform_quantize_is_the_nearest_of_the_levels(lower, width, bits, seed):
    x, q = lower + width * (1.5 * torch.rand(50, generator=_seeded(seed)) - 0.25), 2**bits - 1
    y = Q.uniform_quantize(x, lower, lower + width, bits)
    codes = y * q
    assert (codes - codes.round()).abs().max() < 1e-4
    t = ((x.double() - lower) / width).clamp(0, 1)
    assert ((y - t).abs() <= 0.5 / q + 1e-4).all()
    assert (y[x.argsort()].diff() >= 0).all()


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_uniform_quantize_gradients_are_those_of_the_formula():
    x = (2 * randn(300)).requires_grad_()
    lower, upper = (torch.tensor(v, requires_grad=True) for v in (-1.2, 0.9))
    g = randn(300, seed=2)
    Q.uniform_quantize(x, lower, upper, 2).backward(g)
    width, inside = 2.1, (x.detach() >= -1.2) & (x.detach() <= 0.9)
    values = x.detach()
    torch.testing.assert_close(x.grad, g * inside / width)
    torch.testing.assert_close(upper.grad, -(g * (values + 1.2) * inside).sum() / width**2)
    torch.testing.assert_close(lower.grad, (g * (values - 0.9) * inside).sum() / width**2)


def test_uniform_quantize_sums_gradients_over_broadcast_ranges():
    x, lower = randn(3, 5).requires_grad_(), torch.full((3, 1), -1.0, requires_grad=True)
    Q.uniform_quantize(x, lower, torch.ones(3, 1), 4).sum().backward()
    rows = [torch.full((1,), -1.0, requires_grad=True) for _ in range(3)]
    for row, values in zip(rows, x.detach(), strict=True):
        Q.uniform_quantize(values, row, torch.ones(1), 4).sum().backward()
    torch.testing.assert_close(lower.grad[:, 0], torch.cat([row.grad for row in rows]))


def test_two_bit_weights_have_four_levels_and_no_zero():
    weight = randn(1000)
    values = Q.quantize_weight(weight, -3.0, 3.0).unique()
    torch.testing.assert_close(values, torch.tensor([-1, -1 / 3, 1 / 3, 1]))


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2, 1), (torch.tensor(1.0), torch.tensor(0.5))])
def test_an_empty_clipping_range_is_refused(ends):
    with pytest.raises(ValueError, match="empty clipping range"):
        Q.uniform_quantize(randn(4), *ends, 4)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="expects a floating-point tensor"):
        Q.uniform_quantize(torch.arange(4), 0, 3, 4)


def test_affine_ranges_hold_zero_exactly():
    low, high = torch.tensor([0.5, -3.0, -2.0, 0.0]), torch.tensor([2.0, -1.0, 5.0, 0.0])
    scale, zero_point = Q.affine_qparams(low, high, 4)
    torch.testing.assert_close(scale, torch.tensor([2 / 15, 3 / 15, 7 / 15, Q.MIN_SCALE]))
    assert zero_point.tolist() == [0, 15, 4, 0]
    zero = torch.zeros(4, 1)
    assert (Q.fake_quantize(zero, scale, zero_point, 4, axis=0) == 0).all()


def slow_mse_qparams(row, bits, p, steps):
    best = (float("inf"), None, None)
    for i in range(steps):
        ends = (row.min() * (1 - 0.01 * i), row.max() * (1 - 0.01 * i))
        scale, zero_point = Q.affine_qparams(*ends, bits)
        y = torch.fake_quantize_per_tensor_affine(row, scale, zero_point.int(), 0, 2**bits - 1)
        score = (y - row).abs().pow(p).mean().item()
        best = min(best, (score, scale.item(), zero_point.item()), key=lambda b: b[0])
    return best


@pytest.mark.parametrize("bits", [2, 4])
def test_range_search_finds_the_best_of_the_candidates(bits):
    x = randn(5, 3, 40)
    scale, zero_point = Q.mse_qparams(x, bits, axis=1)
    for c in range(3):
        score, s, z = slow_mse_qparams(x[:, c].flatten(), bits, 2.4, 80)
        error = Q.fake_quantize(x[:, c], scale[c], zero_point[c], bits) - x[:, c]
        assert error.abs().pow(2.4).mean().item() == pytest.approx(score, rel=1e-5)
        assert (scale[c].item(), zero_point[c].item()) == pytest.approx((s, z), rel=1e-5)


def test_range_search_beats_the_full_range_and_scales_with_the_data():
    x, errors = randn(4, 200), []
    for bits in (2, 3, 4, 8):
        pairs = [f(x, bits, axis=0) for f in (Q.mse_qparams, Q.minmax_qparams)]
        ours, full = (
            (Q.fake_quantize(x, *p, bits, axis=0) - x).abs().pow(2.4).mean(1) for p in pairs
        )
        assert (ours <= full).all()
        errors.append(ours.mean().item())
    assert errors == sorted(errors, reverse=True)
    (scale, zero), (wide, same) = Q.mse_qparams(x, 3, axis=0), Q.mse_qparams(4 * x, 3, axis=0)
    torch.testing.assert_close(wide, 4 * scale)
    assert torch.equal(zero, same)


def test_range_search_of_one_tensor_returns_scalars_and_of_zeros_the_smallest_scale():
    scale, zero_point = Q.mse_qparams(randn(50), 4)
    assert scale.shape == zero_point.shape == ()
    scale, zero_point = Q.mse_qparams(torch.zeros(3, 4), 4, axis=0)
    assert (scale == Q.MIN_SCALE).all()
    assert (zero_point == 0).all()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(3), {"bits": 1}, "2..8"),
        (torch.ones(3), {"bits": 4, "p": 0}, "p > 0"),
        (torch.ones(3), {"bits": 4, "steps": 0}, "steps >= 1"),
        (torch.ones(0), {"bits": 4}, "is empty"),
        (torch.tensor([1.0, torch.nan]), {"bits": 4}, "NaN"),
        (torch.arange(3), {"bits": 4}, "integers"),
    ],
)
def test_range_search_refuses_bad_input(x, options, message):
    with pytest.raises(ValueError, match=message):
        Q.mse_qparams(x, **options)


@pytest.mark.parametrize("signed", [True, False])
def test_lsq_value_and_gradient_scale(signed):
    x, step = randn(100).requires_grad_(), torch.tensor(0.3, requires_grad=True)
    low, high = (-4, 3) if signed else (0, 7)
    y = Q.lsq(x, step, 3, signed=signed)
    torch.testing.assert_close(y, (x / 0.3).round().clamp(low, high) * 0.3)
    y.sum().backward()
    v = x.detach() / 0.3
    plain = torch.where((v > high) | (v < low), v.clamp(low, high), v.round() - v).sum()
    edge = (v.round() <= high) & (v.round() >= low)  # inside is decided after rounding
    plain = torch.where(edge, v.round() - v, v.clamp(low, high)).sum()
    torch.testing.assert_close(step.grad, plain / (100 * high) ** 0.5)
    assert Q.lsq_scale(x, 3, signed=signed) == pytest.approx(2 * x.abs().mean().item() / high**0.5)


def test_alpha_starts_at_the_fraction_and_rounds_to_the_nearest():
    w, bits = randn(8, 40), 3
    scale, zero_point = Q.mse_qparams(w, bits, axis=0)
    alpha = Q.init_alpha(w, scale)
    v = w / scale[:, None]
    torch.testing.assert_close(Q.rectified_sigmoid(alpha), v - v.floor(), atol=1e-6, rtol=0)
    assert alpha.isfinite().all()
    assert alpha.abs().max() <= 2.3980
    hard = Q.adaround_weight(w, scale, zero_point, alpha, bits, hard=True)
    nearest = Q.fake_quantize(w, scale, zero_point, bits, axis=0)
    torch.testing.assert_close(hard, nearest)
    soft = Q.adaround_weight(w, scale, zero_point, alpha, bits)
    ends = (-zero_point * scale)[:, None], ((7 - zero_point) * scale)[:, None]
    torch.testing.assert_close(soft, w.clamp(*ends), atol=1e-6, rtol=0)


def test_adaptive_rounding_moves_only_alpha_by_the_closed_form():
    w, bits = randn(4, 30).requires_grad_(), 2
    scale, zero_point = Q.mse_qparams(w, bits, axis=0)
    scale.requires_grad_()
    alpha = randn(4, 30, seed=3).requires_grad_()
    Q.adaround_weight(w, scale, zero_point, alpha, bits).sum().backward()
    assert w.grad is None
    assert scale.grad is None
    sigmoid, s = alpha.detach().sigmoid(), scale.detach()[:, None]
    h = 1.2 * sigmoid - 0.1
    code = (w.detach() / s).floor() + h + zero_point[:, None]
    moves = (h > 0) & (h < 1) & (code > 0) & (code < 3)
    torch.testing.assert_close(alpha.grad, s * 1.2 * sigmoid * (1 - sigmoid) * moves)


def test_adaptive_rounding_names_wrong_shapes():
    w = randn(4, 3)
    with pytest.raises(ValueError, match=r"\(3,\) for w \(4, 3\)"):
        Q.init_alpha(w, torch.ones(3))
    with pytest.raises(ValueError, match="positive"):
        Q.init_alpha(w, torch.zeros(4))
    with pytest.raises(ValueError, match="alpha has shape"):
        Q.adaround_weight(w, torch.ones(4), torch.zeros(4), torch.zeros(4, 2), 4)


def test_bit_operations_multiply():
    assert Q.bit_operations(1000, 2, 8) == 16_000
    with pytest.raises(ValueError, match="macs"):
        Q.bit_operations(-1, 2, 8)
    with pytest.raises(ValueError, match="bits"):
        Q.bit_operations(1, 0, 8)
