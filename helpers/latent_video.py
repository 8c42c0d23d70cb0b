"""Latent diffusion models (Stable Diffusion with ControlNets) that denoise a whole clip at once.

Only torch models of diffusers are needed; its pipelines, and text encoders, need `transformers`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.diffusion_loops import ddim, run_variants

INSTEAD = 'leave it "" to run without (the defaults need no such model)'


@dataclass
class LatentDiffusion:
    """A UNet in a VAE's latent space with any number of ControlNets, and its scheduler.

    chunk: frames a call of the networks; 0 for the whole clip, which cross-frame attention needs.
    """

    unet: nn.Module
    vae: nn.Module
    scheduler: object
    controlnets: Sequence[nn.Module] = ()
    scales: Sequence[float] = ()
    chunk: int = 0
    networks: tuple = field(init=False)

    def __post_init__(self):
        self.networks = (self.unet, self.vae, *self.controlnets)
        self.scales = tuple(self.scales) or (1.0,) * len(self.controlnets)
        for network in self.networks:
            network.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the networks."""
        return next(self.unet.parameters()).dtype

    def multiple(self) -> int:
        """Height and width of frames must be multiples of this."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [n, c, h', w'], float32, of frames [n, 3, h, w] in 0..1: the posterior's mean."""
        means = [
            self.vae.encode((2 * part - 1).to(self.device, self.dtype)).latent_dist.mode()
            for part in frames.split(1)
        ]
        return torch.cat(means).float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames [n, 3, h, w] in 0..1, float32, of latents."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.device, self.dtype)
        images = torch.cat([self.vae.decode(part).sample for part in scaled.split(1)])
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def codec(self, smooth: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A deflicker of clean latents from one of frames: decode, smooth, encode."""
        return lambda x0: self.encode(smooth(self.decode(x0))).to(x0)

    def model(
        self, embeddings: dict[str, Tensor], structure: Tensor, guidance: float = 7.5
    ) -> Callable[[Tensor, int], Tensor]:
        """model(x, t): the guided output for latents x of all frames.

        embeddings: "positive" and "negative" prompts [1, tokens, width]. structure: [n, 3, h, w]
        for every ControlNet; residuals are summed. guidance: 1 leaves the negative prompt out.
        """
        kinds = ["negative", "positive"] if guidance != 1 else ["positive"]

        @torch.no_grad()
        def run(x: Tensor, t: int) -> Tensor:
            size = self.chunk or len(x)
            pairs = zip(x.split(size), structure.split(size), strict=True)
            return torch.cat([guided(part, hint, t) for part, hint in pairs])

        def guided(x: Tensor, hint: Tensor, t: int) -> Tensor:
            prompts = torch.cat([embeddings[kind].expand(len(x), -1, -1) for kind in kinds])
            twice, hints = (torch.cat([y] * len(kinds)) for y in (x, hint))
            output = self._once(twice, t, prompts.to(self.device), hints).float()
            if len(kinds) == 1:
                return output
            plain, wanted = output.chunk(2)
            return plain + guidance * (wanted - plain)

        return run

    def _once(self, x: Tensor, t: int, prompts: Tensor, hints: Tensor) -> Tensor:
        x, prompts, hints = (y.to(self.device, self.dtype) for y in (x, prompts, hints))
        down, middle = None, None
        for network, scale in zip(self.controlnets, self.scales, strict=True):
            if scale == 0:
                continue
            options = {"conditioning_scale": scale, "return_dict": False}
            more, last = network(x, t, prompts, hints, **options)
            down = more if down is None else [a + b for a, b in zip(down, more, strict=True)]
            middle = last if middle is None else middle + last
        return self.unet(
            x, t, prompts,
            down_block_additional_residuals=None if down is None else tuple(down),
            mid_block_additional_residual=middle,
        ).sample  # fmt: skip


def load(
    folder: str, controlnets: Sequence[str], steps: int, session, chunk: int = 0
) -> LatentDiffusion:
    """Stable Diffusion and ControlNets from folders in diffusers' layout or hub names.

    "tiny" stands for randomly initialised ones, to try the path without weights. The networks
    run in bfloat16 when that is the session's precision.
    Raises FileNotFoundError naming the parameter when one cannot be found.
    """
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    if folder == "tiny":
        return tiny(steps, session.device)
    dtype = torch.bfloat16 if session.precision == "bf16" else torch.float32
    unet = _pretrained(UNet2DConditionModel, "stable_diffusion", folder, dtype, subfolder="unet")
    vae = _pretrained(AutoencoderKL, "stable_diffusion", folder, dtype, subfolder="vae")
    nets = [_pretrained(ControlNetModel, "controlnets", name, dtype) for name in controlnets]
    networks = (network.to(session.device) for network in (unet, vae, *nets))
    unet, vae, *nets = networks
    return LatentDiffusion(unet, vae, ddim("epsilon", steps), nets, chunk=chunk)


def _pretrained(kind: type, parameter: str, name: str, dtype: torch.dtype, **options) -> nn.Module:
    try:
        return kind.from_pretrained(name, torch_dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{parameter}: no {kind.__name__} in {name!r} (a folder in diffusers' layout or a hub "
            f"name); {INSTEAD}"
        ) from error


def tiny(steps: int = 4, device: torch.device | str = "cpu", seed: int = 0) -> LatentDiffusion:
    """A latent model of all the same parts with a few thousand random weights."""
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared = {
            "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
            "cross_attention_dim": 24, "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        }  # fmt: skip
        unet = UNet2DConditionModel(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **shared)
        hints = {"conditioning_embedding_out_channels": (8, 16)}
        control = ControlNetModel(**shared, **hints)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 32), norm_num_groups=8, latent_channels=4,
        )  # fmt: skip
        for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            nn.init.normal_(layer.weight, std=0.1)  # they start at 0, and would say nothing
    networks = [network.to(device) for network in (unet, vae, control)]
    return LatentDiffusion(networks[0], networks[1], ddim("epsilon", steps), networks[2:])


def prompt_embeddings(
    folder: str, prompt: str, negative: str = "", file: str = "", width: int = 24
) -> dict[str, Tensor]:
    """ "positive" and "negative" embeddings [1, tokens, width] of two prompts.

    file: a .safetensors file with both, made before; else the text encoder in `folder` makes
    them, which needs transformers. For the folder "tiny" they are random, `width` wide.
    Raises ImportError naming the parameter, FileNotFoundError for a missing file.
    """
    if file:
        from safetensors.torch import load_file

        if not Path(file).is_file():
            raise FileNotFoundError(f"prompt_file: no file {file}")
        return load_file(file)
    if folder == "tiny":
        generator = torch.Generator().manual_seed(len(prompt))
        return {k: torch.randn(1, 7, width, generator=generator) for k in ("positive", "negative")}
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise ImportError(
            "prompt: text is encoded by transformers (`pip install transformers`); or give "
            "prompt_file, a .safetensors file with `positive` and `negative` (1 x 77 x 768)"
        ) from None
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    with torch.no_grad():
        tokens = tokenizer([prompt, negative], max_length=77, **options).input_ids
        positive, other = encoder(tokens).last_hidden_state.split(1)
    return {"positive": positive, "negative": other}


def edges(clip: Tensor, sigma: float = 1.5) -> Tensor:
    """Canny edges of a clip [n, 3, h, w] as the picture [n, 3, h, w] that ControlNets expect."""
    from skimage.feature import canny

    grey = clip.mean(1).cpu().numpy()
    lines = torch.stack([torch.from_numpy(canny(frame, sigma=sigma)) for frame in grey])
    return lines[:, None].float().expand(-1, 3, -1, -1)


def compare(
    folder: str,
    controlnets: Sequence[str],
    session,
    in_loop: Callable,
    blend: Callable,
    *,
    video: str,
    size: Sequence[int],
    frames: int,
    step: Sequence[int],
    steps: int,
    window: int,
    mode: str,
    matcher: dict,
    intervals: Sequence[int],
    guidance: float,
    prompt: str,
    prompt_file: str = "",
    raft_weights: str = "",
    index: Tensor | None = None,
) -> dict:
    """Denoise one clip with every variant and measure: "clips", "scores", "measured", "holds".

    The clip is a video, or a pan by `step` over a photograph; motion is known, or RAFT's.
    All end with the smoother, blend(frames, guide, window, ...), except the fixed noise alone.
    in_loop: as for `run_variants`. index: for `helpers.cross_frames`.
    """
    from helpers.cross_frames import set_cross_frames
    from helpers.data import panning_photo
    from helpers.flicker import sharpness
    from helpers.flows import flow_error, pan_flows, raft_flows
    from helpers.videos import read_video

    if video and not raft_weights:
        raise ValueError(f"the motion of {video!r} is unknown: give raft_weights (RAFT's file)")
    if video:
        guide = read_video((session.data_root or Path()) / video, frames, tuple(size))
    else:  # a small pan, enlarged by a power of two: the motion stays exact
        zoom = 2 ** max(0, (min(size) // 128).bit_length() - 1)
        small, step = [side // zoom for side in size], [zoom * side for side in step]
        guide = panning_photo(session.seed, frames, small, [side // zoom for side in step], 1)
        guide = F.interpolate(guide, tuple(size), mode="bilinear")
    guide, generator = guide.to(session.device), session.generator(200)
    flow = raft_flows(guide, raft_weights) if raft_weights else pan_flows(step, guide.shape[2:])
    networks = load(folder, controlnets, steps, session)
    if index is not None:
        for network in (networks.unet, *networks.controlnets):
            set_cross_frames(network, index)
    embeddings = prompt_embeddings(folder, prompt, file=prompt_file)
    model = networks.model(embeddings, edges(guide).to(session.device), guidance)
    shape = networks.encode(guide[:1]).shape
    noise = torch.randn(shape, generator=generator).to(session.device).expand(frames, -1, -1, -1)
    options = {"mode": mode, "nnf_cache": {}, "generator": generator} | matcher
    began = perf_counter()
    variants = {"fixed noise": (True, None, 1, None), "post-hoc": (True, None, 1, "blend")}
    variants |= {f"every {every}": (True, "blend", every, "blend") for every in intervals}
    smoothers = {"blend": lambda x: blend(x, guide, window, **options)}
    run = variants, in_loop, model, noise, networks.scheduler, smoothers
    clips = run_variants(*run, codec=networks.codec, decode=networks.decode)
    seconds = (perf_counter() - began) / frames / len(clips)
    scores = {
        name: [{"warp [1e-3]": 1e3 * flow_error(clip, flow), "s/frame": seconds,
                "sharpness [1e-3]": 1e3 * sharpness(clip)}]
        for name, clip in clips.items()
    }  # fmt: skip
    (post,), (loop,) = (scores[name] for name in ("post-hoc", f"every {min(intervals)}"))
    holds = all(
        sign * loop[key] <= sign * post[key]
        for key, sign in (("warp [1e-3]", 1), ("sharpness [1e-3]", -1))
    )
    measured = "; ".join(f"{key} {loop[key]:.3g} and {post[key]:.3g}" for key in post)
    return {
        "clips": {"guide": guide} | clips,
        "scores": scores,
        "measured": measured,
        "holds": holds,
    }
