"""A small generator that learns from a large one, with all that its way of learning needs."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from helpers.gan_recipe import Networks, Recipe, make_gan
from helpers.gans import Widened, init_normal
from helpers.session import Session

NEEDS = ("nothing", "connectors", "maps", "pooled", "gan")


class Student(nn.Module):
    """`generator`, a copy of nets.student, and `connectors`, one for each of its maps.

    needs: "connectors" gives it a second copy of them, `own`; "maps" and "pooled" make `own` a
    `Widened` from its maps to the teacher's; "gan" a training of its own with a fresh
    discriminator, `gan`, and then only the connectors are trained by `update`.
    arm: its name; scale: a place for the factor of its term. Raises ValueError for other needs.
    """

    def __init__(
        self,
        arm: str,
        needs: str,
        connectors: nn.ModuleList,
        nets: Networks,
        recipe: Recipe,
        session: Session,
    ):
        super().__init__()
        if needs not in NEEDS:
            raise ValueError(f"needs must be one of {', '.join(NEEDS)}, got {needs!r}")
        self.arm, self.recipe, self.session, self.scale = arm, recipe, session, None
        self.generator, self.connectors = deepcopy(nets.student), connectors
        if needs == "connectors":
            self.own = deepcopy(connectors)
        if needs in ("maps", "pooled"):
            shape = len(connectors), 4 * recipe.student_width, 4 * recipe.teacher_width
            self.own = Widened(*shape, needs == "pooled", session.generator(2))
        self.to(session.device).train()
        self.gan, trained = None, self.parameters()
        if needs == "gan":
            fresh = init_normal(deepcopy(nets.discriminator), session.generator(2))
            self.gan = make_gan(recipe, session, self.generator, fresh, recipe.lr)
            trained = self.connectors.parameters()
        self.optimizer = torch.optim.Adam(trained, recipe.lr, betas=(0.5, 0.999))

    def update(self, loss: Tensor, factor: float, a: Tensor, b: Tensor) -> None:
        """One step down the loss at `factor` times the learning rate; a and b are for `gan`."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.recipe.lr
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.gan is not None:
            self.gan.scale_lr(factor)
            self.gan.step(a, b)
