"""Sampling whole clips with diffusers' schedulers, and correcting what a model says on the way."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from functools import wraps

import torch
from torch import Tensor

Smoother = Callable[[Tensor], Tensor]


def ddim(prediction_type: str, steps: int):
    """diffusers' DDIM scheduler with Stable Diffusion's noise, trailing steps, a = 1 at the end."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=True, timestep_spacing="trailing", prediction_type=prediction_type,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


def steps_kept(steps: int, train_steps: int, strength: float) -> int:
    """floor(steps * strength), the steps that image-to-image runs.

    Raises ValueError for steps outside 1..train_steps, strength outside (0, 1] or no step left.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"num_inference_steps is {steps}; allowed: 1 to {train_steps}")
    kept = math.floor(steps * strength + 1e-9)
    if not 0 < strength <= 1 or kept < 1:
        need = f"above 0, at most 1, with a step left of {steps}"
        raise ValueError(f"strength is {strength}; allowed: {need}")
    return kept


def check_alphas(alpha_t: float, alpha_prev: float = 1.0) -> None:
    """Raise ValueError unless 0 < alpha_t < 1 and 0 < alpha_prev <= 1."""
    if not 0 < alpha_t < 1 or not 0 < alpha_prev <= 1:
        got = f"got {float(alpha_t)} and {float(alpha_prev)}"
        raise ValueError(f"need 0 < alpha_t < 1 and 0 < alpha_prev <= 1, {got}")


def same_shape(deflicker: Smoother, x0: Tensor) -> Tensor:
    """deflicker(x0); ValueError with both shapes when it changes the shape."""
    smooth = deflicker(x0)
    if smooth.shape != x0.shape:
        shapes = f"{tuple(smooth.shape)} of {tuple(x0.shape)}"
        raise ValueError(f"deflicker must keep the shape of the clean frames, it made {shapes}")
    return smooth


@torch.no_grad()
def sample(model, x: Tensor, scheduler, timesteps: Tensor | None = None, watch=None) -> Tensor:
    """Denoise all frames x [n, ...] with model(x, t); watch(t, output) sees every output."""
    for t in (scheduler.timesteps if timesteps is None else timesteps).tolist():
        output = model(x, t)
        if watch is not None:
            watch(t, output)
        x = scheduler.step(output, t, x).prev_sample
    return x


def to_frames(x: Tensor) -> Tensor:
    """From -1..1, where pixel models work, to frames in 0..1."""
    return ((x + 1) / 2).clamp(0, 1)


def pixel_codec(smooth: Smoother) -> Smoother:
    """The deflicker of a model in -1..1 from one of frames in 0..1: only the range changes."""
    return lambda x0: 2 * smooth(to_frames(x0)) - 1


def clean_frames(kind: str, output: Tensor, x_t: Tensor, alpha: float) -> Tensor:
    """x_0 from a model's output of a diffusers prediction type, at cumulative alpha."""
    if kind == "epsilon":
        return (x_t - (1 - alpha) ** 0.5 * output) / alpha**0.5
    if kind == "v_prediction":
        return alpha**0.5 * x_t - (1 - alpha) ** 0.5 * output
    return output


def model_output(kind: str, x0: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """The output, of a diffusers prediction type, that means clean frames x0 and noise eps."""
    if kind == "epsilon":
        return eps
    return x0 if kind == "sample" else alpha**0.5 * eps - (1 - alpha) ** 0.5 * x0


def with_correction(scheduler, correct: Callable, interval: int = 1, ignore_last: int = 0):
    """A copy of a scheduler whose `step` first corrects the model's output.

    correct(output, timestep, x_t) -> output is called in step s of the S that a run takes when
    s % interval == 0 and s < S - ignore_last. Pipelines of diffusers see the same signatures.
    Raises ValueError for interval < 1 or ignore_last < 0, TypeError for a scheduler that does not
    keep x_t as DDIM does.
    """
    if interval < 1 or ignore_last < 0:
        got = f"got {interval} and {ignore_last}"
        raise ValueError(f"interval must be >= 1 and ignore_last >= 0, {got}")
    if not hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "is_scale_input_called"):
        raise TypeError(f"{type(scheduler).__name__} does not keep x_t as DDIM does; use DDIM")
    changed, kind, done = copy.deepcopy(scheduler), type(scheduler), [0]

    @wraps(scheduler.set_timesteps)
    def set_timesteps(*args, **kwargs):
        done[0] = 0
        return kind.set_timesteps(changed, *args, **kwargs)

    @wraps(scheduler.step)
    def step(model_output, timestep, sample, *args, **kwargs):
        left = int((changed.timesteps < timestep).sum())
        if done[0] % interval == 0 and left >= ignore_last:
            model_output = correct(model_output, timestep, sample)
        done[0] = done[0] + 1 if left else 0
        return kind.step(changed, model_output, timestep, sample, *args, **kwargs)

    changed.step, changed.set_timesteps = step, set_timesteps
    return changed


def run_variants(
    variants: Mapping[str, tuple],
    in_loop: Callable,
    model: Callable,
    noise: Tensor,
    scheduler,
    smoothers: Mapping[str, Smoother],
    *,
    timesteps: Tensor | None = None,
    codec: Callable[[Smoother], Smoother] = pixel_codec,
    decode: Smoother = to_frames,
) -> dict[str, Tensor]:
    """Frames [n, 3, h, w] in 0..1 of every variant of sampling a clip.

    variants: {name: (one noise for all frames?, smoother in the loop or None, its interval,
    smoother of the finished frames or None)}; what two of them share is sampled once.
    in_loop(scheduler, deflicker, interval): a scheduler that deflickers.
    """
    sampled, outs = {}, {}
    for name, (one, inside, interval, end) in variants.items():
        if (key := (one, inside, interval)) not in sampled:
            x, loop = noise[:1].expand_as(noise) if one else noise, scheduler
            if inside:
                loop = in_loop(scheduler, codec(smoothers[inside]), interval)
            sampled[key] = decode(sample(model, x, loop, timesteps))
        outs[name] = smoothers[end](sampled[key]) if end else sampled[key]
    return outs


def collect(table: dict[str, list], outs: Mapping[str, object], score: Callable) -> None:
    """Append score(out) to table[name] for every named out."""
    for name, out in outs.items():
        table.setdefault(name, []).append(score(out))


def column(table: Mapping[str, Iterable[Mapping]], key: str) -> dict[str, list[float]]:
    """One key of a table of `collect`: {name: its values}."""
    return {name: [row[key] for row in rows] for name, rows in table.items()}


def worst_ratio(values: Mapping[str, list[float]], a: str, b: str) -> float:
    """The largest ratio of a to b over the clips of a `column`."""
    return max(x / y if y else math.inf for x, y in zip(values[a], values[b], strict=True))


def watch_outputs(
    model: Callable, x: Tensor, scheduler, look: Callable[[Tensor], float], seen: dict[int, list]
) -> None:
    """Sample a clip and append look(output of the model) to seen[timestep] in every step."""
    sample(model, x, scheduler, watch=lambda t, out: seen.setdefault(t, []).append(look(out)))
