"""Frechet distance of two sets of images in the feature space of a network.

Distances in two feature spaces, or of two numbers of images, cannot be compared.
"""

import warnings
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from helpers.pretrained import efficientnet_lite0

NETWORKS = ("efficientnet_lite0", "inception")


class PooledFeatures(nn.Module):
    """Images (n, 3, h, w) in [-1, 1] -> features (n, num_features), frozen, under its name."""

    def __init__(self, name: str, network: nn.Module, num_features: int):
        super().__init__()
        self.name, self.network, self.num_features = name, network, num_features
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PooledFeatures":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "inception":  # bytes by truncation, as in the official evaluations
            return self.network(((x.clamp(-1, 1) + 1) * 127.5).byte())
        return self.network(x).mean((2, 3))


def feature_network(name: str, weights: str | Path = "") -> PooledFeatures:
    """The network of a Frechet distance.

    efficientnet_lite0: its first five stages averaged over space, 112 numbers an image, so that
    a few hundred images give a covariance of full rank. inception: pool3 of the TensorFlow
    Inception-v3 (2,048 numbers) that published FIDs use; weights: its file
    weights-inception-2015-12-05-6726825d.pth; needs the package torch-fidelity.
    Raises ValueError for another name, FileNotFoundError when the weights are not on disk.
    """
    if name not in NETWORKS:
        raise ValueError(f"feature network is {name!r}; allowed: {', '.join(NETWORKS)}")
    if name == "efficientnet_lite0":
        network = efficientnet_lite0()
        parts = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:5])
        return PooledFeatures(name, parts, 112)
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"no Inception weights at {str(weights)!r}; get https://github.com/toshas/torch-fidelity"
            "/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    options = {"features_list": ["2048"], "feature_extractor_weights_path": str(weights)}
    return PooledFeatures(name, NoTrainInceptionV3("inception-v3-compat", **options), 2048)


def frechet_distance(features_a, features_b) -> float:
    """Frechet distance of two Gaussians fitted to feature rows (n, d) and (m, d).

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2), in float64 with unbiased
    covariances (Heusel et al. 2017). The symmetric form has real eigenvalues. Raises ValueError
    for fewer than two rows or different d; warns when there are no more rows than d.
    """
    a, b = (np.asarray(f, dtype=np.float64) for f in (features_a, features_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need (n, d) features with n >= 2 and one d, got {a.shape} and {b.shape}")
    if min(len(a), len(b)) <= a.shape[1]:
        warnings.warn(
            f"{min(len(a), len(b))} rows for {a.shape[1]} features: the covariance is singular "
            "and the distance biased",
            stacklevel=2,
        )
    cov_a, cov_b = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    shift = a.mean(0) - b.mean(0)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum()
    return float(shift @ shift + trace)
