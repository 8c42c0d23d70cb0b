"""N:M masks and masked products against their definitions and against torch's own layers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import sparsity
from helpers.sparsity import bimask_conv2d, bimask_linear, is_nm_sparse, nm_mask

EASY = settings(deadline=None, max_examples=30)
PATTERNS = st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (2, 8), (1, 16), (3, 16), (4, 4)])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_mask(weight, n, m):
    """Per group of a row, by sorting: the n largest magnitudes, the first of equals."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for row, start in itertools.product(range(len(weight)), range(0, weight.shape[1], m)):
        group = weight[row, start : start + m].abs().tolist()
        for index in sorted(range(m), key=lambda i: (-group[i], i))[:n]:
            mask[row, start + index] = True
    return mask


@EASY
@given(pattern=PATTERNS, groups=st.integers(1, 3), rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_nm_mask_is_the_sorted_definition(pattern, groups, rows, seed):
    n, m = pattern
    weight = draw(rows, groups * m, seed=seed)
    assert torch.equal(nm_mask(weight, n, m), brute_mask(weight, n, m))
    assert torch.equal(nm_mask(weight.T, n, m, 0), nm_mask(weight, n, m, 1).T)
    assert torch.equal(nm_mask(weight * -3.5, n, m), nm_mask(weight, n, m))


@EASY
@given(pattern=PATTERNS, values=st.integers(0, 3), seed=st.integers(0, 99))
def test_exactly_n_are_kept_even_among_equals(pattern, values, seed):
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(0, values + 1, (5, 2 * m), generator=generator).float()
    assert (nm_mask(weight, n, m).unflatten(1, (-1, m)).sum(2) == n).all()
    if m <= 8 or n == 1:
        assert torch.equal(nm_mask(weight, n, m), brute_mask(weight, n, m))


def test_nm_mask_takes_any_rank_and_dim():
    weight = draw(3, 8, 5, 2)
    mask = nm_mask(weight, 2, 4, dim=1)
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    assert (mask.unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert torch.equal(nm_mask(weight, 2, 4, dim=-3), mask)
    assert nm_mask(weight, 8, 8, dim=1).all()


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (2.0, 4), (True, 4), (-1, 4)])
def test_bad_patterns(n, m):
    with pytest.raises(ValueError, match="need 1 <= n <= m, got n="):
        nm_mask(draw(4, 8), n, m)


def test_bad_weights():
    with pytest.raises(ValueError, match="size 6 of dim 1 is not a multiple of m=4"):
        nm_mask(draw(4, 6), 2, 4)
    with pytest.raises(TypeError, match="int64"):
        nm_mask(torch.ones(4, 8, dtype=torch.int64), 2, 4)


@pytest.mark.parametrize("text", ["2/4", "24", "2:", ":4", "a:b", "2:4:8", "-2:4", ""])
def test_pattern_text_must_look_like_n_m(text):
    with pytest.raises(ValueError, match="pattern must look like 'N:M'"):
        sparsity.parse_pattern(text)


def test_pattern_text():
    assert sparsity.parse_pattern("1:16") == (1, 16)
    with pytest.raises(ValueError, match="need 1 <= n <= m"):
        sparsity.parse_pattern("5:4")


def masks(weight, seed=1):
    """Two unrelated masks of a weight's shape."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(weight.shape, generator=generator) < 0.5 for _ in range(2)]


def gradients(function, x, weight, bias, grad):
    x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
    y = function(x, weight, bias)
    y.backward(grad)
    return y.detach(), x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16)])
def test_linear_products(shape):
    x, weight, bias, grad = draw(*shape), draw(8, 16, seed=1), draw(8, seed=2), draw(*shape[:-1], 8)
    f, b = masks(weight)
    y, dx, dw, db = gradients(
        lambda x, w, c: bimask_linear(x, w, f, b, c, decay=0.3), x, weight, bias, grad
    )
    flat_x, flat_g = x.flatten(0, -2), grad.flatten(0, -2)
    torch.testing.assert_close(y, x @ (weight * f).T + bias)
    torch.testing.assert_close(dx, grad @ (weight * b))
    torch.testing.assert_close(dw, flat_g.T @ flat_x + 0.3 * ~f * weight)
    torch.testing.assert_close(db, flat_g.sum(0))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((2, 1), (0, 2))])
def test_convolution_is_torchs_with_each_mask_in_its_place(stride, padding):
    x, weight, bias = draw(3, 4, 9, 8), draw(8, 4, 3, 3, seed=1), draw(8, seed=2)
    f, b = masks(weight)
    grad = draw(*F.conv2d(x, weight, None, stride, padding).shape, seed=3)

    def run(mask_y, mask_x=None):
        def function(x, w, c):
            if mask_x is None:
                return F.conv2d(x, w * mask_y, c, stride, padding)
            return bimask_conv2d(x, w, mask_y, mask_x, c, stride, padding)

        return gradients(function, x, weight, bias, grad)

    y, dx, dw, db = run(f, b)
    reference_f, reference_b = run(f), run(b)
    torch.testing.assert_close(y, reference_f[0])
    torch.testing.assert_close(dx, reference_b[1])
    dense = run(torch.ones_like(f))[2]
    torch.testing.assert_close(dw, dense)
    torch.testing.assert_close(db, reference_f[3])


def test_kernel_one_is_linear():
    x, weight = draw(6, 16), draw(8, 16, seed=1)
    f, b = masks(weight)
    grad, none = draw(6, 8, seed=2), torch.zeros(8)
    linear = gradients(lambda x, w, c: bimask_linear(x, w, f, b, c, 0.1), x, weight, none, grad)
    f4, b4 = f[:, :, None, None], b[:, :, None, None]
    conv = gradients(
        lambda x, w, c: bimask_conv2d(x, w, f4, b4, c, decay=0.1),
        x[:, :, None, None], weight[:, :, None, None], none, grad[:, :, None, None],
    )  # fmt: skip
    for ours, other in zip(conv, linear, strict=True):
        torch.testing.assert_close(ours.flatten(), other.flatten())


def test_all_ones_is_the_dense_layer_for_any_decay():
    x, weight, bias, grad = draw(5, 16), draw(8, 16), draw(8), draw(5, 8)
    ones = torch.ones(8, 16, dtype=torch.bool)
    ours = gradients(lambda x, w, c: bimask_linear(x, w, ones, ones, c, 0.7), x, weight, bias, grad)
    dense = gradients(F.linear, x, weight, bias, grad)
    for left, right in zip(ours, dense, strict=True):
        torch.testing.assert_close(left, right)


@EASY
@given(batch=st.integers(1, 9), first=st.floats(0, 1), second=st.floats(0, 1))
def test_decay_does_not_depend_on_the_batch(batch, first, second):
    x, weight, grad = draw(batch, 8), draw(4, 8, seed=1), draw(batch, 4, seed=2)
    f, b = nm_mask(weight, 2, 4), masks(weight)[1]
    bias = torch.zeros(4)
    one, two = (
        gradients(lambda x, w, c, d=d: bimask_linear(x, w, f, b, c, d), x, weight, bias, grad)[2]
        for d in (first, second)
    )
    torch.testing.assert_close(one - two, (first - second) * ~f * weight, atol=1e-5, rtol=1e-4)


def test_an_empty_backward_mask_stops_the_signal_but_not_the_weight_gradient():
    x, weight, grad = draw(5, 8), draw(4, 8), draw(5, 4)
    f = nm_mask(weight, 2, 4)
    none = torch.zeros_like(f)
    run = gradients(
        lambda x, w, c: bimask_linear(x, w, f, none, c), x, weight, torch.zeros(4), grad
    )
    assert not run[1].any()
    assert (run[2] != 0).all()


def test_the_backward_pass_is_an_estimator():
    weight = draw(4, 8).double().requires_grad_()
    x = draw(3, 8).double().requires_grad_()
    f = nm_mask(weight, 2, 4)
    check = torch.autograd.gradcheck
    assert not check(lambda x, w: bimask_linear(x, w, f, f), (x, weight), raise_exception=False)
    ones = torch.ones_like(f)
    assert check(lambda x, w: bimask_linear(x, w, ones, ones), (x, weight))


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_needed_gradients_are_computed(needed):
    x, weight = draw(2, 4, 5, 5), draw(4, 4, 3, 3)
    x.requires_grad_(needed[0]), weight.requires_grad_(needed[1])
    f, b = masks(weight)
    bimask_conv2d(x, weight, f, b).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == needed


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_bf16_autocast_masks_the_full_precision_weight(layer):
    x = draw(6, 16, 4, 4) if layer == "conv" else draw(6, 16)
    weight = draw(8, 16, 1, 1) if layer == "conv" else draw(8, 16)
    weight.requires_grad_(), x.requires_grad_()
    f, b = masks(weight)
    function = bimask_conv2d if layer == "conv" else bimask_linear
    with torch.autocast("cpu", torch.bfloat16):
        y = function(x, weight, f, b, decay=0.5)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    exact = function(x.detach(), weight.detach(), f, b)
    torch.testing.assert_close(y.float(), exact, atol=0.2, rtol=0.02)
    kept = weight.grad[f].detach().clone()
    weight.grad = None
    function(x, weight, f, b).sum().backward()
    torch.testing.assert_close(kept, weight.grad[f], atol=0.5, rtol=0.02)


def test_masks_must_be_bool_and_fit():
    x, weight = draw(2, 8), draw(4, 8)
    mask = nm_mask(weight, 2, 4)
    with pytest.raises(TypeError, match=r"forward_mask must be bool, got torch.float32"):
        bimask_linear(x, weight, mask.float(), mask)
    with pytest.raises(ValueError, match=r"backward_mask has shape \(8, 4\), weight \(4, 8\)"):
        bimask_linear(x, weight, mask, mask.T)
    with pytest.raises(ValueError, match=r"forward_mask has shape \(4, 8\), weight \(4, 8, 1, 1\)"):
        bimask_conv2d(x[:, :, None, None], weight[:, :, None, None], mask, mask)


class Odd(nn.Linear):
    """A layer with a forward pass that nobody knows."""


def test_selection_says_why_layers_stay_dense():
    model = nn.ModuleDict(
        {
            "fits": nn.Conv2d(16, 32, 3),
            "linear": nn.Linear(32, 16),
            "stem": nn.Conv2d(3, 16, 3),
            "depthwise": nn.Conv2d(16, 16, 3, groups=16),
            "dilated": nn.Conv2d(16, 16, 3, dilation=2),
            "reflect": nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
            "same": nn.Conv2d(16, 16, 3, padding="same"),
            "odd": Odd(16, 16),
            "block": nn.Sequential(nn.Linear(16, 16)),
            "head": nn.Linear(16, 10),
        }
    )
    sparse, dense = sparsity.select_layers(model, 16, keep_dense=["block"])
    assert list(sparse) == ["fits", "linear"]
    assert sparse["fits"] is model["fits"]
    assert dense == {
        "stem": "27 inputs are not a multiple of 16",
        "depthwise": "groups = 16",
        "dilated": "dilation (2, 2)",
        "reflect": "padding is not a number of zeros",
        "same": "padding is not a number of zeros",
        "odd": "Odd is not a plain Conv2d or Linear",
        "block.0": "kept dense by choice",
        "head": "10 outputs are not a multiple of 16",
    }
    assert "head" in sparsity.select_layers(model, 16, both=False)[0]
    with pytest.raises(
        ValueError, match=r"keep_dense names layers that the model lacks: \['stm'\]"
    ):
        sparsity.select_layers(model, 16, keep_dense=["stm"])


def test_is_nm_sparse_counts_along_the_dimension():
    weight = draw(8, 16, 3, 3)
    masked = weight * nm_mask(weight, 1, 4, dim=1)
    assert is_nm_sparse(masked, 1, 4)
    assert not is_nm_sparse(weight, 1, 4)
    assert not is_nm_sparse(masked.transpose(0, 1), 1, 4)
    assert is_nm_sparse(masked.transpose(0, 1), 1, 4, dim=0)
    assert is_nm_sparse(torch.zeros(4, 4), 1, 4, dim=-1)
    with pytest.raises(ValueError, match="size 6 of dim 1 is not a multiple of m=4"):
        is_nm_sparse(torch.zeros(4, 6), 1, 4)


def test_a_pattern_of_other_types_is_a_type_and_a_value_error():
    for error in (TypeError, ValueError):
        with pytest.raises(error, match=r"got n=1\.5, m=4"):
            nm_mask(draw(4, 4), 1.5, 4)
