"""2:4 products against the masked dense layers they stand for."""

import pytest
import torch
from torch import nn

from helpers import semi_structured
from helpers.sparsity import nm_mask

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sparse(layer):
    with torch.no_grad():
        layer.weight.mul_(nm_mask(layer.weight, 2, 4, dim=1))
    return layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        sparse(nn.Conv2d(8, 20, (3, 1), stride=(2, 1), padding=(1, 0))),
        nn.ReLU(),
        sparse(nn.Conv2d(20, 24, 3, padding=1, bias=False)),
        nn.Conv2d(24, 24, 3, groups=24),
        nn.Flatten(),
        sparse(nn.Linear(24 * 2 * 6, 12)),
        nn.Linear(12, 5),
    ).eval()


def test_export_unfolds_and_pads_without_changing_the_result():
    model, x = network(), torch.randn(2, 3, 8, 8)
    matrices = []
    exported, names = semi_structured.export(
        model, compress=lambda matrix: matrices.append(matrix) or matrix, dtype=torch.float32
    )
    assert names == ["1", "3", "6"]
    torch.testing.assert_close(exported(x), model(x))
    for matrix in matrices:  # what a GPU would compress
        assert not [size for size in matrix.shape if size % 64]
        assert ((matrix != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()
    assert type(model[1]) is nn.Conv2d  # the model itself is left alone


@pytest.mark.skipif(bool(semi_structured.why_not(GPU)), reason=semi_structured.why_not(GPU))
def test_compressed_products_match_the_dense_half_precision_network():
    model, x = network().to(GPU).half(), torch.randn(2, 3, 8, 8, device=GPU).half()
    exported, _ = semi_structured.export(model)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3), "not 2:4"),
        (nn.Conv2d(6, 8, 3), "not 2:4"),
        (nn.Conv2d(8, 8, 3, groups=2), "groups 2"),
        (nn.Conv2d(8, 8, 3, dilation=2), "dilation"),
        (nn.Conv2d(8, 8, 3, padding="same"), "padding same"),
        (nn.ReLU(), "ReLU is not a plain"),
    ],
)
def test_the_reason_for_a_dense_layer_is_named(layer, reason):
    assert reason in semi_structured.why_no_product(layer)
    assert semi_structured.export(nn.Sequential(layer), compress=lambda m: m)[1] == []
