"""A small generator beside a large one: the recipe, the networks, and training the large one."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.adversarial import CycleGan, ImagePool, PairedGan, gan_loss, linear_decay
from helpers.data.paired_images import check_images
from helpers.gans import PatchDiscriminator, ResnetGenerator, init_normal
from helpers.session import Session
from helpers.training import minibatches


@dataclass(frozen=True)
class Recipe:
    """Networks, data and training; the words are those of the notebook's parameters."""

    dataset: str
    size: int
    train_images: int
    student_images: int
    test_images: int
    teacher_width: int
    student_width: int
    blocks: int
    discriminator_width: int
    discriminator_layers: int
    conditional: bool
    gan_mode: str
    l1_weight: float
    teacher_steps: int
    halfway_steps: int
    steps: int
    teacher_round: int
    student_round: int
    constant_share: float
    batch_size: int
    teacher_lr: float
    lr: float
    dcd_weight: float
    adversarial_weight: float
    style_weight: float
    feature_weight: float

    def __post_init__(self):
        """Raise ValueError for a mode, a size or a width that cannot work, before any work."""
        gan_loss(torch.zeros(1), True, self.gan_mode)
        if self.size % 4 or self.size < 8:
            raise ValueError(f"size must be a multiple of 4 and at least 8, got {self.size}")
        smallest = 3 * 2**self.discriminator_layers
        if self.size // 4 < smallest:
            raise ValueError(
                f"discriminator with layers={self.discriminator_layers} needs inputs of at least "
                f"{smallest} px, got {self.size // 4} (maps have a quarter of size={self.size})"
            )
        if self.conditional and self.dataset == "cyclegan":
            raise ValueError("a conditional discriminator needs paired data")


class Networks(nn.Module):
    """A teacher generator, its discriminator and a student generator with fresh weights."""

    def __init__(self, recipe: Recipe, rng: torch.Generator):
        super().__init__()
        self.teacher = ResnetGenerator(width=recipe.teacher_width, blocks=recipe.blocks)
        seen = 6 if recipe.conditional else 3
        shape = recipe.discriminator_width, recipe.discriminator_layers
        self.discriminator = PatchDiscriminator(seen, *shape)
        self.student = ResnetGenerator(width=recipe.student_width, blocks=recipe.blocks)
        for network in self.children():
            init_normal(network, rng)

    def load_state_dict(self, weights: dict[str, Tensor], **options):
        """Load a checkpoint; ValueError when a width is not the one it was trained with."""
        first = {"teacher": "stem.1", "discriminator": "body.0", "student": "stem.1"}
        for name, layer in first.items():
            stored, wanted = len(weights[f"{name}.{layer}.bias"]), getattr(self, name).width
            if stored != wanted:
                raise ValueError(
                    f"the checkpoint's {name} has width {stored}, {name}_width is {wanted}"
                )
        return super().load_state_dict(weights, **options)


def make_gan(
    recipe: Recipe,
    session: Session,
    generator: nn.Module,
    discriminator: nn.Module,
    lr: float,
) -> PairedGan:
    """The optimizers around a generator and its discriminator; a `CycleGan` for unpaired data."""
    nets = [network.to(session.device).train() for network in (generator, discriminator)]
    options = {"lr": lr, "mode": recipe.gan_mode, "autocast": session.autocast}
    if recipe.dataset != "cyclegan":
        options |= {"l1_weight": recipe.l1_weight, "conditional": recipe.conditional}
        return PairedGan(*nets, **options)
    rng = session.generator(50)
    back = [init_normal(deepcopy(net).cpu(), rng).to(session.device) for net in nets]
    pools = tuple(ImagePool(50, session.generator(60 + i)) for i in range(2))
    return CycleGan((nets[0], back[0]), (nets[1], back[1]), pools=pools, **options)


def row_batches(count: int, batch_size: int, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
    """`steps` shuffled batches of row numbers below count."""
    rows = torch.arange(count)
    batches = minibatches(rows, rows, batch_size=batch_size, steps=steps, generator=rng)
    return (batch for batch, _ in batches)


def train_gan(gan: PairedGan, data, recipe: Recipe, session: Session, steps: int) -> None:
    """Train a GAN alone; in the second half of the steps the learning rate falls.

    Raises ValueError naming the step at which a loss is no longer finite.
    """
    rng = session.generator(1)
    rows = row_batches(len(data), recipe.batch_size, steps, rng)
    for step, batch in enumerate(tqdm(rows, total=steps, desc="teacher", leave=False)):
        gan.scale_lr(linear_decay(step, steps // 2, steps - steps // 2))
        a, b = data.batch(batch, rng)
        if step == 0:
            check_images(a, "inputs"), check_images(b, "targets")
        losses = gan.step(a.to(session.device), b.to(session.device))
        if step % 50 == 0 and not torch.isfinite(torch.stack(list(losses.values()))).all():
            raise ValueError(f"teacher diverged at step {step}")
