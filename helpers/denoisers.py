"""Denoisers of clips: one in closed form, and a small guided UNet of diffusers to train."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def exact_denoiser(styles: Tensor, alphas: Tensor) -> Callable[[Tensor, int], Tensor]:
    """model(x, t): the mean of x_0 given x_t when each 5 x 5 window wears one of the styles.

    styles: [k, n, 3, h, w] in -1..1, equally likely. alphas: cumulative alpha products [T].
    With d_k the squared distance of x_t to sqrt(a) styles_k over the window (inside the image,
    scaled to 25 pixels): the styles weighted by softmax(-d_k / (2 (1 - a))).
    """

    def model(x: Tensor, t: int) -> Tensor:
        a = alphas[t].to(x)
        d = (x - a.sqrt() * styles).square().sum(2)
        d = 25 * F.avg_pool2d(d, 5, 1, 2, count_include_pad=False)
        weights = torch.softmax(-d / (2 * (1 - a)), 0)
        return (weights[:, :, None] * styles).sum(0)

    return model


class GuidedUNet(nn.Module):
    """diffusers' UNet2DModel on 2 x 2 blocks of pixels; predicts "v" from x, guide and time.

    Input [b, 5, h, w] as `helpers.data.noisy_batches` makes it, h and w multiples of 8;
    output [b, 3, h, w]. There is one self-attention, at an eighth of the resolution.
    """

    def __init__(self, channels: Iterable[int] = (16, 32, 48), size: int = 32):
        super().__init__()
        from diffusers import UNet2DModel

        channels = tuple(channels)
        plain = len(channels) - 1
        self.unet = UNet2DModel(
            sample_size=size // 2,
            in_channels=16,
            out_channels=12,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=8,
            attention_head_dim=16,
        )

    def forward(self, packed: Tensor) -> Tensor:
        """v [b, 3, h, w] of packed inputs [b, 5, h, w]."""
        blocks = F.pixel_unshuffle(packed[:, :4], 2)
        return F.pixel_shuffle(self.unet(blocks, packed[:, 4, 0, 0]).sample, 2)

    def predict(self, x: Tensor, timestep: int, guide: Tensor) -> Tensor:
        """v [n, 3, h, w] of noisy images x in -1..1 with grey guides [n, 1, h, w] in 0..1."""
        plane = torch.full_like(guide, float(timestep))
        return self(torch.cat([x, 2 * guide - 1, plane], 1))


def guided_unet(seed: int, channels: Iterable[int], size: int) -> GuidedUNet:
    """A new `GuidedUNet` whose weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GuidedUNet(channels, size)


def train_denoiser(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    session,
    decay: float = 0.999,
) -> list[float]:
    """Train in place with AdamW, one cycle and mean squared error; return the losses.

    steps: 10 or more. The model ends with the exponential moving average of its weights.
    """
    from timm.utils import ModelEmaV3

    from helpers.training import fit

    model.to(session.device)
    ema = ModelEmaV3(model, decay=decay, use_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    rise = max(0.05, 2.5 / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=rise)
    losses = fit(
        model, batches, F.mse_loss, optimizer, steps=steps, session=session, scheduler=schedule,
        clip=1.0, ema=ema, description="denoiser",
    )  # fmt: skip
    model.load_state_dict(ema.module.state_dict())
    return losses


def train_on_scenes(
    model: nn.Module,
    alphas: Tensor,
    *,
    size: int,
    batch_size: int,
    steps: int,
    lr: float,
    session,
) -> dict:
    """Train on `helpers.data.noisy_batches` in place; weights end as float16.

    Returns recipe, licence of the data and training loss for the manifest.
    """
    from helpers.data import noisy_batches

    batches = noisy_batches(alphas, size, batch_size, steps, session.generator())
    losses = train_denoiser(model, batches, steps=steps, lr=lr, session=session)
    model.half()
    last = losses[-200:]
    return {
        "recipe": f"v-prediction, AdamW (weight decay 0.01), one cycle, lr {lr:g}, {steps} steps "
        f"of {batch_size} scenes of {size} x {size}, EMA 0.999, seed {session.seed}, fp16",
        "training_data": "MNIST CC BY-SA 3.0, photographs public domain, CC0 and CC BY 2.0 "
        "(data/README.md)",
        "training_loss": round(sum(last) / len(last), 4),
    }
