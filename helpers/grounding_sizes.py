"""Sizes of text-to-box networks: small for a CPU, medium for a GPU, the published one."""

from helpers.data.expressions import MAX_TOKENS, VOCABULARY
from helpers.grounding import Grounder, ReadyFeatures, WordEmbedding
from helpers.point_networks import Level

SMALL = [Level(384, 0.25, 12, (32, 32, 64)), Level(256, 0.5, 12, (64, 64, 64))]
MEDIUM = [Level(2048, 0.15, 24, (32, 32, 64)), Level(1024, 0.4, 24, (64, 64, 128))]
PAPER = [
    Level(2048, 0.2, 64, (64, 64, 128)),
    Level(1024, 0.4, 32, (128, 128, 256)),
    Level(512, 0.8, 16, (128, 128, 256)),
    Level(256, 1.2, 16, (128, 128, 256)),
]
NETWORKS = {
    "small": {
        "levels": SMALL, "ups": 0, "norm": "layer", "embed_dim": 64, "num_heads": 4,
        "hidden": 128, "depths": (1, 2), "queries": 24, "projection": 32, "drop_rate": 0.0,
    },
    "medium": {
        "levels": MEDIUM, "ups": 0, "norm": "layer", "embed_dim": 128, "num_heads": 8,
        "hidden": 256, "depths": (3, 4), "queries": 128, "projection": 64, "drop_rate": 0.1,
    },
    "paper": {
        "levels": PAPER, "ups": 2, "norm": "batch", "embed_dim": 288, "num_heads": 8,
        "hidden": 256, "depths": (3, 6), "queries": 256, "projection": 64, "drop_rate": 0.1,
    },
}  # fmt: skip


def build_rec(network: str, features: int = 0) -> Grounder:
    """The network of that size, for indices of words, or for ready features of that width.

    Token slots: 16 for the generated sentences, 256 for features. Raises ValueError.
    """
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}; allowed: {', '.join(NETWORKS)}")
    width = NETWORKS[network]["embed_dim"]
    if features:
        text = ReadyFeatures(features, width)
    else:
        text = WordEmbedding(len(VOCABULARY), MAX_TOKENS, width)
    return Grounder(text=text, slots=256 if features else 16, **NETWORKS[network])
