"""Self-attention over several frames at once, as an attention processor of diffusers models."""

from torch import Tensor, nn


class CrossFrameAttention:
    """Every frame of a clip attends to the tokens of the frames that `index` names.

    index: int64 [frames, sources]. A batch holds the frames once, or several times one after the
    other (classifier-free guidance). Attention to a prompt stays as it is.
    """

    def __init__(self, index: Tensor):
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.index, self.ordinary = index, AttnProcessor2_0()

    # diffusers passes a processor what its signature names
    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> Tensor:
        if encoder_hidden_states is not None:
            return self.ordinary(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        tokens = hidden_states
        if tokens.dim() == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        frames = len(self.index)
        if len(tokens) % frames:
            raise ValueError(f"a batch of {len(tokens)} is no multiple of {frames} frames")
        clips = tokens.unflatten(0, (-1, frames))[:, self.index.to(tokens.device)]
        return self.ordinary(attn, hidden_states, clips.flatten(0, 1).flatten(1, 2))


def set_cross_frames(model: nn.Module, index: Tensor | None) -> int:
    """Let the self-attentions of a diffusers UNet or ControlNet see several frames.

    index: as for `CrossFrameAttention`; None restores ordinary attention. Returns how many layers
    changed. Raises ValueError for a model without self-attention.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    layers = [
        module
        for module in model.modules()
        if isinstance(module, Attention) and not module.is_cross_attention
    ]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no self-attention of diffusers")
    for layer in layers:
        layer.set_processor(AttnProcessor2_0() if index is None else CrossFrameAttention(index))
    return len(layers)
