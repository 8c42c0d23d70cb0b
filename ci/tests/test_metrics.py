"""Counts against hand calculations."""

import math

import pytest
import timm
import torch
from torch import nn

from helpers import metrics


def test_multiply_adds_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.zeros(2, 3, 6, 6)
    assert metrics.macs(model, x) == 2 * (36 * 8 * 27 + 8 * 36 * 10)
    counts = metrics.layer_macs(model, x)
    assert counts == {"": metrics.macs(model, x), "0": 2 * 36 * 8 * 27, "2": 2 * 8 * 36 * 10}


def test_counting_leaves_the_mode_and_the_statistics():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).train()
    metrics.macs(model, torch.ones(2, 1, 3, 3))
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_a_known_network_on_the_meta_device():
    with torch.device("meta"):
        model = timm.create_model("resnet50")
        counted = metrics.macs(model, torch.empty(1, 3, 224, 224))
    assert 4.08e9 < counted < 4.12e9  # the 4.1 G of the ResNet literature
    assert metrics.parameters(model) == 25_557_032


def test_a_shared_parameter_counts_once():
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    second.weight = first.weight
    assert metrics.parameters(nn.Sequential(first, second)) == 12 + 3 + 3


def test_psnr_of_known_differences():
    a = torch.zeros(1, 3, 8, 8)
    assert metrics.psnr(a, a) == float("inf")
    assert metrics.psnr(a, a + 25.5) == pytest.approx(20)
    edge = a.clone()
    edge[:, :, 0] = 99.0
    assert metrics.psnr(edge, a, shave=1) == float("inf")


def test_luma_psnr_rounds_clamps_and_weighs():
    hr = torch.full((1, 3, 6, 6), 100.0)
    assert metrics.psnr_y(hr + 0.4, hr, 0) == float("inf")  # rounds away
    assert metrics.psnr_y(torch.full_like(hr, 300.0), torch.full_like(hr, 255.0), 2) == float("inf")
    green = hr.clone()
    green[:, 1] += 10
    expected = -20 * math.log10(10 / 255 * 129.057 / 256)
    assert metrics.psnr_y(green, hr, 1) == pytest.approx(expected)


def test_psnr_refuses_other_shapes_and_a_cut_that_leaves_nothing():
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="leaves nothing"):
        metrics.psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), shave=4)
    with pytest.raises(ValueError, match="3 channels"):
        metrics.psnr_y(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), 0)
