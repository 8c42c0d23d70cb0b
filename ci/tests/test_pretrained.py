"""The packaged EfficientNet-Lite0 weights."""

import pytest
import torch

from helpers import pretrained
from helpers.data import photo


def test_a_wrong_file_is_refused(monkeypatch):
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the expected file"):
        pretrained.weights_file()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "efficientnet-lite9")
    with pytest.raises(FileNotFoundError, match="efficientnet-lite9"):
        pretrained.weights_file()


@torch.no_grad()
def test_the_network_sees_a_cat_and_a_cup():
    network = pretrained.efficientnet_lite0()
    crops = [photo("chelsea")[:, 20:280, 100:360], photo("coffee")[:, :400, 150:550]]
    x = [torch.nn.functional.interpolate(c[None].float() / 255, (224, 224)) for c in crops]
    logits = network((torch.cat(x) - pretrained.MEAN) / pretrained.STD)
    cats, cups = {281, 282, 283, 284, 285}, {967, 968, 969, 504}  # ImageNet-1k classes
    assert logits[0].argmax().item() in cats
    assert logits[1].argmax().item() in cups
