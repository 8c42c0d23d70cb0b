"""Students of a large GAN: what they are told, kept in memory, and turns with its training."""

from collections.abc import Callable
from copy import deepcopy
from itertools import islice

import torch
from torch import Tensor, nn

from helpers.adversarial import PairedGan, linear_decay
from helpers.data.paired_images import check_images
from helpers.gan_checks import check_finite
from helpers.gan_recipe import Networks, Recipe, make_gan, row_batches, train_gan
from helpers.session import Session


def remember(
    signals: Callable[..., dict[str, list[Tensor]]], data, count: int
) -> Callable[[Tensor], dict[str, list[Tensor]]]:
    """signals(inputs, targets) of the first `count` rows of the data, computed once.

    signals: gives lists of tensors (n, ...) by name. The result looks them up by row numbers.
    """
    parts = [
        signals(*map(check_images, data.batch(rows))) for rows in torch.arange(count).split(64)
    ]
    columns = {key: zip(*(part[key] for part in parts), strict=True) for key in parts[0]}
    stored = {key: [torch.cat(column) for column in many] for key, many in columns.items()}
    return lambda rows: {key: [t[rows.to(t.device)] for t in many] for key, many in stored.items()}


def pretrained(nets: Networks, data, recipe: Recipe, session: Session) -> nn.Module:
    """A discriminator trained alone with a copy of the teacher, in as many steps as in joint
    training with students (`alternate`), or `teacher_steps` when there is none."""
    own = deepcopy(nets)
    gan = make_gan(recipe, session, own.teacher, own.discriminator, recipe.teacher_lr)
    rounds = -(-recipe.steps // recipe.student_round) * recipe.teacher_round
    train_gan(gan, data, recipe, session, rounds or recipe.teacher_steps)
    return gan.discriminator


def alternate(
    gan: PairedGan,
    data,
    recipe: Recipe,
    session: Session,
    teach: Callable[[float, Tensor, torch.Generator], dict[str, Tensor]],
    look: Callable[[], None] = lambda: None,
    looks: int = 1,
) -> None:
    """`recipe.steps` steps of students; before every `student_round` of them the GAN's own round.

    A round is `teacher_round` steps of gan on batches of the data. teach(factor, rows, rng) makes
    one step on these rows at `factor` times the learning rate and returns losses by student;
    rng draws augmentation. look() is called `looks` times, at last after the last step.
    Raises ValueError naming the student and the step of a loss that is not finite.
    """
    rng, count = session.generator(4), recipe.student_images or len(data)
    rounds = -(-recipe.steps // recipe.student_round) * recipe.teacher_round
    visits = row_batches(len(data), recipe.batch_size, rounds, session.generator(5))
    constant, last = round(recipe.constant_share * recipe.steps), recipe.steps - 1
    losses = []
    for step, rows in enumerate(row_batches(count, recipe.batch_size, recipe.steps, rng)):
        factor = linear_decay(step, constant, recipe.steps - constant)
        if step % recipe.student_round == 0:
            gan.scale_lr(factor)
            for visit in islice(visits, recipe.teacher_round):
                a, b = data.batch(visit, rng)
                gan.step(a.to(session.device), b.to(session.device))
        losses += [(loss, name, step) for name, loss in teach(factor, rows, rng).items()]
        if step == last or step % 50 == 49:  # a look at a loss makes a GPU wait
            check_finite(losses)
            losses.clear()
        if step == last or (step + 1) % max(1, -(-recipe.steps // looks)) == 0:
            look()
