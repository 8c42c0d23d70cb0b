"""Train and evaluate on accelerate: one process on a CPU or a GPU, or several on many GPUs."""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from tqdm import tqdm

CHECK_EVERY = 50  # steps between looks at the losses: a look makes a GPU wait


def accelerator():
    """An `accelerate.Accelerator` that leaves devices and precision to the session.

    A batch size is that of all processes together: loaders are split, not multiplied.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    split = DataLoaderConfiguration(split_batches=True)
    return Accelerator(mixed_precision="no", device_placement=False, dataloader_config=split)


def _device(accelerator, session) -> torch.device:
    return accelerator.device if accelerator.num_processes > 1 else session.device


def _cycle(batches: Iterable) -> Iterator:
    """Iterate again and again; `ValueError` when there is nothing (more) to iterate."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches ran out before the last step (is it a used-up generator?)")


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    session,
    scheduler=None,
    clip: float | None = None,
    ema=None,
    on_step: Callable[[int], None] | None = None,
    description: str = "",
) -> list[float]:
    """Train in place for `steps` optimizer steps and return the loss of each.

    batches: (x, y) pairs, iterated again when they end; a `DataLoader` is split over the
        processes, of any other iterable each process takes its part of every batch.
    loss: loss(logits, y) -> scalar. clip: largest gradient norm.
    scheduler: torch's (`step`) or timm's with t_in_epochs=False (`step_update`), once per step.
    ema: timm's ModelEmaV3. on_step: called with the step's index after the optimizer.
    Raises `FloatingPointError` naming the step when a loss is not finite.
    """
    runner = accelerator()
    device = _device(runner, session)
    model.to(device).train()
    wrapped, optimizer = runner.prepare(model, optimizer)
    if isinstance(batches, DataLoader):
        batches, part = runner.prepare(batches), slice(None)
    else:
        part = slice(runner.process_index, None, runner.num_processes)
    losses: list[Tensor] = []
    history: list[float] = []
    with tqdm(total=steps, desc=description, leave=False) as bar:
        for step, (x, y) in zip(range(steps), _cycle(batches), strict=False):
            x, y = (t[part].to(device, non_blocking=True) for t in (x, y))
            with session.autocast():
                logits = wrapped(x)
            value = loss(logits.float(), y)
            runner.backward(value)
            if clip is not None:
                runner.clip_grad_norm_(wrapped.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _after_step(step, model, scheduler, ema, on_step)
            losses.append(value.detach())
            if len(losses) == CHECK_EVERY or step == steps - 1:
                means = runner.reduce(torch.stack(losses), "mean").tolist()
                history += _checked(means, len(history))
                losses.clear()
            bar.update()
    return history


def _after_step(step: int, model: nn.Module, scheduler, ema, on_step) -> None:
    if hasattr(scheduler, "step_update"):
        scheduler.step_update(step + 1)
    elif scheduler is not None:
        scheduler.step()
    if ema is not None:
        ema.update(model)
    if on_step is not None:
        on_step(step)


def _checked(losses: list[float], done: int) -> list[float]:
    for index, value in enumerate(losses):
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {done + index}")
    return losses


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, *, session, batch_size: int = 500) -> Tensor:
    """Logits of in-memory inputs x in eval mode, float32 on the CPU; the mode is restored."""
    training = model.training
    model.to(session.device).eval()
    with session.autocast():
        parts = [model(part.to(session.device)).float().cpu() for part in x.split(batch_size)]
    model.train(training)
    return torch.cat(parts)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Top-1 accuracy in percent of logits (n, classes) for labels y (n,)."""
    if len(logits) != len(y) or len(y) == 0:
        raise ValueError(f"need as many logits as labels, got {len(logits)} and {len(y)}")
    return 100 * (logits.argmax(-1) == y.to(logits.device)).double().mean().item()


@torch.no_grad()
def scores(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, session
) -> dict[str, float]:
    """Top-1 "accuracy" [%] and mean cross-entropy "nll" [nats] over (x, y) batches in eval mode.

    The mode is restored. A `DataLoader` is shared out over the processes, each sample counts once.
    """
    runner = accelerator()
    device = _device(runner, session)
    shared = isinstance(batches, DataLoader)
    batches = runner.prepare(batches) if shared else batches
    training = model.training
    model.to(device).eval()
    right, nll = [], []
    for x, y in batches:
        y = y.to(device)
        with session.autocast():
            logits = model(x.to(device)).float()
        pair = logits.argmax(-1) == y, nn.functional.cross_entropy(logits, y, reduction="none")
        hit, loss = runner.gather_for_metrics(pair) if shared else pair
        right.append(hit)
        nll.append(loss)
    model.train(training)
    if not right:
        raise ValueError("there is no batch to evaluate")
    hits, losses = torch.cat(right).double(), torch.cat(nll).double()
    return {"accuracy": 100 * hits.mean().item(), "nll": losses.mean().item()}


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, session) -> float:
    """The "accuracy" of `scores`."""
    return scores(model, batches, session=session)["accuracy"]


def reestimate_norms(model: nn.Module, x: Tensor, *, session, batch_size: int = 100) -> None:
    """Measure the batch norms' statistics anew: means over batches of inputs x, weights as is."""
    with session.autocast():
        update_bn(x.split(batch_size), model, session.device)


def minibatches(
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` shuffled batches of in-memory tensors, the same for the same generator state.

    Every pass over the data is a new permutation; an incomplete last batch is left out.
    transform(x, generator) augments a batch.
    """
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must be in 1..{len(x)} (the number of images): {batch_size}")
    per_pass = len(x) // batch_size
    for step in range(steps):
        if step % per_pass == 0:
            order = torch.randperm(len(x), generator=generator)
        start = step % per_pass * batch_size
        rows = order[start : start + batch_size].to(x.device)
        batch = x[rows]
        yield (batch if transform is None else transform(batch, generator)), y[rows]


def crop_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Zero-pad, crop at random and flip half of the images x (batch, channels, height, width)."""
    batch, _, height, width = x.shape
    shift = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator).to(x.device)
    flip = (torch.rand(batch, 1, generator=generator) < 0.5).to(x.device)
    rows = shift[0] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    columns = shift[1] + torch.where(flip, width - 1 - columns, columns)
    padded = nn.functional.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def launch(notebook: str, function: str, kwargs: dict, processes: int = 1):
    """Call a function of a notebook's `method` cells in 1 or more processes.

    processes > 1: accelerate's workers, started by torchrun (accelerate's own launcher needs MPI
    for several processes on a CPU), on as many GPUs, else on the CPU. kwargs and the returned
    value (of process 0) hold tensors, numbers, strings, lists and dicts only.
    Raises `RuntimeError` with the end of the workers' output when they fail.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if processes == 1:
        return _call(notebook, function, kwargs)
    on_gpus = torch.cuda.device_count() >= processes and kwargs.get("device") != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        given, returned = Path(folder, "kwargs.pt"), Path(folder, "result.pt")
        torch.save(kwargs, given)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", "helpers.training"]
        command += [notebook, function, str(given), str(returned)]
        environment = os.environ | {"ACCELERATE_USE_CPU": str(not on_gpus).lower()}
        options = {"capture_output": True, "text": True, "check": False, "env": environment}
        done = subprocess.run(command, **options)
        if done.returncode != 0 or not returned.exists():
            raise RuntimeError(
                f"{function} failed in {processes} processes (exit code {done.returncode}):\n"
                + (done.stdout + done.stderr)[-4000:]
            )
        return torch.load(returned, weights_only=True)


def _call(notebook: str, function: str, kwargs: dict):
    from helpers.notebooks import load

    return getattr(load(notebook), function)(**kwargs)


def _worker(notebook: str, function: str, given: str, returned: str) -> None:
    from accelerate import PartialState

    state = PartialState(cpu=os.environ["ACCELERATE_USE_CPU"] == "true")
    result = _call(notebook, function, torch.load(given, weights_only=True))
    if state.is_main_process:
        torch.save(result, returned)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    _worker(*sys.argv[1:])
