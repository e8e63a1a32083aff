"""The edit as pnp-diffusers does it, on diffusers' UNet: what the benchmark measures minipnp against.

Guidance, unconditional and conditional branch are one batch of three in every step, to its end. The eight overridden
self-attentions write their maps out, always; the others are diffusers' own. f and A are computed for all three branches
and then written over. Only what depends on old versions of diffusers is different.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minipnp.ddim import pairs, step, timesteps
from minipnp.guidance import Guidance
from minipnp.pnp import PnP


class Authors:
    """unet: diffusers' `UNet2DConditionModel` (`tools.verify.reference.like`), of which layers 4 to 11 are changed."""

    def __init__(self, unet: nn.Module):
        self.unet, self.inject_f, self.inject_A = unet, False, False
        for row in range(4, 12):
            block, within = unet.up_blocks[row // 3], row % 3
            block.attentions[within].transformer_blocks[0].attn1.set_processor(self._attention)
            if row == 4:
                self._override_f(block.resnets[within])

    def _attention(self, attn: nn.Module, x: Tensor, encoder_hidden_states=None, attention_mask=None, **_) -> Tensor:
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        if self.inject_A:
            n = len(q) // 3
            for overridden in (q, k):
                overridden[n : 2 * n] = overridden[:n]
                overridden[2 * n :] = overridden[:n]
        q, k, v = (attn.head_to_batch_dim(tensor) for tensor in (q, k, v))
        similarity = torch.einsum("bid,bjd->bij", q, k) * attn.scale
        out = torch.einsum("bij,bjd->bid", similarity.softmax(dim=-1), v)
        return attn.to_out[0](attn.batch_to_head_dim(out))

    def _override_f(self, res: nn.Module) -> None:
        def forward(x: Tensor, time: Tensor, *_, **__) -> Tensor:
            h = res.conv1(res.nonlinearity(res.norm1(x)))
            h = h + res.time_emb_proj(res.nonlinearity(time))[:, :, None, None]
            h = res.conv2(res.nonlinearity(res.norm2(h)))
            if self.inject_f:
                n = len(h) // 3
                h[n : 2 * n] = h[:n]
                h[2 * n :] = h[:n]
            return (x if res.conv_shortcut is None else res.conv_shortcut(x)) + h

        res.forward = forward

    @torch.no_grad()
    def edit(self, G: Guidance, text: Tensor, null: Tensor, s: PnP) -> Iterator[tuple[int, Tensor]]:
        """As `minipnp.pnp.plug_and_play` with one text, without a negative prompt."""
        dtype, x = self.unet.dtype, G.x_T
        texts = torch.cat([null, null, text]).to(dtype)
        for i, (t, t_prev) in enumerate(pairs(timesteps(s.steps))):
            self.inject_f, self.inject_A = i < s.injected_steps(s.tau_f), i < s.injected_steps(s.tau_A)
            batch = torch.cat([G.latents[t], x, x]).to(dtype)
            _, e_null, e_text = self.unet(batch, t, encoder_hidden_states=texts).sample.to(x.dtype).chunk(3)
            x = step(x, e_null + s.scale * (e_text - e_null), t, t_prev)
            yield t_prev, x
