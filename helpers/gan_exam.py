"""Small generators against the large one they learn from, on held-out images."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data.paired_images import check_images, image_pairs
from helpers.fid import PooledFeatures, frechet_distance
from helpers.gan_recipe import Recipe
from helpers.metrics import psnr
from helpers.session import Session


class Exam:
    """Held-out inputs and targets, float (n, 3, size, size) in [-1, 1] on the CPU.

    paired: whether a target belongs to its input. network: gives the features of distances.
    """

    def __init__(self, recipe: Recipe, network: PooledFeatures, session: Session):
        options = {"size": recipe.size, "count": recipe.test_images, "root": session.data_root}
        data = image_pairs(recipe.dataset, "test", **options)
        pairs = [data.batch(rows) for rows in torch.arange(len(data)).split(64)]
        self.inputs, self.targets = (check_images(torch.cat(t)) for t in zip(*pairs, strict=True))
        self.paired, self.session = data.paired, session
        self.network = network.to(session.device)
        self.real = self.features(self.targets)

    @torch.no_grad()
    def images(self, generator: nn.Module) -> Tensor:
        """What a generator makes of the inputs, on the CPU."""
        made = []
        for part in self.inputs.split(64):
            with self.session.autocast():
                made.append(generator(part.to(self.session.device)).float().cpu())
        return torch.cat(made)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Pooled features (n, d) of images, on the CPU."""
        parts = images.split(64)
        return torch.cat([self.network(part.to(self.session.device)).cpu() for part in parts])

    def psnr(self, generator: nn.Module) -> float:
        """PSNR [dB] of a generator's images to the targets."""
        return psnr(self.images(generator), self.targets, peak=2.0)

    def compare(
        self, generators: Mapping[str, nn.Module], teacher: nn.Module
    ) -> dict[str, dict[str, float]]:
        """Measures of the teacher and of every generator against it, by name.

        difference: mean absolute difference to the teacher's image. deep: distance of pooled
        features to the teacher's image, over the distance of two teacher images. fid: Frechet
        distance to the real targets. diversity: mean feature distance of two outputs, over the
        teacher's. psnr [dB] to the target, NaN without pairs.
        """
        original = self.images(teacher)
        g, found = self.features(original), {}
        others = F.pairwise_distance(g, g.roll(1, 0)).mean()
        for name, generator in {"teacher": teacher, **generators}.items():
            y = original if name == "teacher" else self.images(generator)
            f = self.features(y)
            found[name] = {
                "difference": F.l1_loss(y, original).item(),
                "deep": (F.pairwise_distance(f, g, eps=0).mean() / others).item(),
                "fid": frechet_distance(f, self.real),
                "diversity": (torch.pdist(f).mean() / torch.pdist(g).mean()).item(),
                "psnr": psnr(y, self.targets, peak=2.0) if self.paired else float("nan"),
            }
        return found
