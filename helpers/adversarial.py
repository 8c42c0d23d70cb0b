"""Adversarial losses, and image-to-image GANs trained step by step on pairs or without them."""

from contextlib import nullcontext
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.gans import frozen

MODES = ("lsgan", "vanilla", "hinge")


def gan_loss(
    logits: Tensor, real: bool, mode: str = "lsgan", for_discriminator: bool = True
) -> Tensor:
    """Mean adversarial loss of logits of any shape whose target is real (1) or fake (0).

    lsgan: squared distance to the target (Mao et al. 2017); vanilla: cross-entropy; hinge:
    max(0, 1 - logits) for real and max(0, 1 + logits) for fake, and -logits for a generator.
    Raises ValueError for another mode, and for a hinge generator that wants to look fake.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "lsgan":
        return (logits - float(real)).square().mean()
    if mode == "vanilla":
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
    if for_discriminator:
        return F.relu(1 - logits if real else 1 + logits).mean()
    if not real:
        raise ValueError(f"a generator's hinge loss needs real=True (modes: {', '.join(MODES)})")
    return -logits.mean()


def linear_decay(epoch: int, constant_epochs: int, decay_epochs: int) -> float:
    """Factor of the learning rate at a 0-based epoch: 1, then a straight line towards 0."""
    return 1.0 - max(0, epoch + 1 - constant_epochs) / (decay_epochs + 1)


class ImagePool:
    """The last `size` generated images; a query swaps half of the new ones for stored ones.

    Shrivastava et al. 2017, as in CycleGAN. While the pool fills, new images come straight back.
    """

    def __init__(self, size: int, generator: torch.Generator):
        self.size, self.generator, self.images = size, generator, []

    def query(self, images: Tensor) -> Tensor:
        """As many images (n, c, h, w) as came in, detached."""
        chosen = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image)
            elif torch.rand((), generator=self.generator) < 0.5:
                slot = int(torch.randint(self.size, (), generator=self.generator))
                self.images[slot], image = image, self.images[slot]
            chosen.append(image)
        return torch.stack(chosen)


def _adam(parameters, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr, betas=(0.5, 0.999))


class PairedGan:
    """A generator and its discriminator, trained on pairs: adversarial + l1_weight * mean |error|.

    conditional: the discriminator sees (input, output) with their channels side by side.
    `step` returns the losses of one batch; `scale_lr` sets both learning rates to factor * lr.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        lr: float = 2e-4,
        mode: str = "lsgan",
        l1_weight: float = 100.0,
        conditional: bool = False,
        autocast=nullcontext,
    ):
        self.generator, self.discriminator = generator, discriminator
        self.lr, self.mode, self.l1_weight, self.autocast = lr, mode, l1_weight, autocast
        self.conditional = conditional
        self.optimizers = [_adam(m.parameters(), lr) for m in (generator, discriminator)]

    def _judge(self, a: Tensor, image: Tensor) -> Tensor:
        return self.discriminator(torch.cat((a, image), 1) if self.conditional else image)

    def step(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """One step of the discriminator, one of the generator, on inputs a and targets b."""
        for_generator, for_discriminator = self.optimizers
        with self.autocast():
            fake = self.generator(a)
        fake = fake.float()
        real_loss = gan_loss(self._judge(a, b), True, self.mode)
        fake_loss = gan_loss(self._judge(a, fake.detach()), False, self.mode)
        loss_d = (real_loss + fake_loss) / 2
        for_discriminator.zero_grad()
        loss_d.backward()
        for_discriminator.step()
        with frozen(self.discriminator):
            adversarial = gan_loss(self._judge(a, fake), True, self.mode, for_discriminator=False)
        error = F.l1_loss(fake, b)
        for_generator.zero_grad()
        (adversarial + self.l1_weight * error).backward()
        for_generator.step()
        return {
            "discriminator": loss_d.detach(),
            "adversarial": adversarial.detach(),
            "error": error.detach(),
        }

    def scale_lr(self, factor: float) -> None:
        """Set the learning rates to factor times the initial one."""
        for group in chain(*(o.param_groups for o in self.optimizers)):
            group["lr"] = factor * self.lr


class CycleGan(PairedGan):
    """CycleGAN (Zhu et al. 2017): two generators, two discriminators, images without partners.

    generators: a -> b and b -> a; discriminators: of b (it judges a -> b) and of a.
    Generator loss: adversarial of both + cycle * (|G_B(G_A(a)) - a| + |G_A(G_B(b)) - b|)
    + cycle * identity * (|G_A(b) - b| + |G_B(a) - a|). Means. `generator` and `discriminator`
    are those of a -> b.
    """

    def __init__(
        self,
        generators: tuple[nn.Module, nn.Module],
        discriminators: tuple[nn.Module, nn.Module],
        *,
        pools: tuple[ImagePool, ImagePool],
        lr: float = 2e-4,
        mode: str = "lsgan",
        cycle: float = 10.0,
        identity: float = 0.5,
        autocast=nullcontext,
    ):
        self.generator, self.back = generators
        self.discriminator, self.back_discriminator = discriminators
        self.pools, self.cycle, self.identity = pools, cycle, identity
        self.conditional = False
        self.lr, self.mode, self.autocast = lr, mode, autocast
        both = [chain(*(m.parameters() for m in pair)) for pair in (generators, discriminators)]
        self.optimizers = [_adam(parameters, lr) for parameters in both]

    def step(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """One step of both generators, then one of both discriminators."""
        for_generators, for_discriminators = self.optimizers
        with self.autocast():
            fake_b, fake_a = self.generator(a), self.back(b)
            back_a, back_b = self.back(fake_b), self.generator(fake_a)
            same_b, same_a = self.generator(b), self.back(a)
        fake_b, fake_a = fake_b.float(), fake_a.float()
        with frozen(self.discriminator, self.back_discriminator):
            adversarial = sum(
                gan_loss(d(fake), True, self.mode, for_discriminator=False)
                for d, fake in ((self.discriminator, fake_b), (self.back_discriminator, fake_a))
            )
        cycle = F.l1_loss(back_a.float(), a) + F.l1_loss(back_b.float(), b)
        same = F.l1_loss(same_b.float(), b) + F.l1_loss(same_a.float(), a)
        for_generators.zero_grad()
        (adversarial + self.cycle * (cycle + self.identity * same)).backward()
        for_generators.step()
        loss_d = 0
        judged = zip(
            (self.discriminator, self.back_discriminator),
            (b, a),
            (fake_b, fake_a),
            self.pools,
            strict=True,
        )
        for discriminator, real, fake, pool in judged:
            real_loss = gan_loss(discriminator(real), True, self.mode)
            fake_loss = gan_loss(discriminator(pool.query(fake)), False, self.mode)
            loss_d = loss_d + (real_loss + fake_loss) / 2
        for_discriminators.zero_grad()
        loss_d.backward()
        for_discriminators.step()
        return {
            "discriminator": loss_d.detach(),
            "adversarial": adversarial.detach(),
            "error": cycle.detach(),
        }
