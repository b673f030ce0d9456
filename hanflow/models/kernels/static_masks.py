"""Attention masks that do not depend on the values of their inputs, for devices that compile whole steps (XLA).

transformers omits the mask where nothing is padded. To find out it must wait for the device, and the two cases would be
two graphs. Here the mask is always built; the attention itself is torch's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "hanflow_static"


def use(model: PreTrainedModel) -> None:
    """Train a transformers model with static masks; a model without attention is left unchanged."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not getattr(model, "_supports_sdpa", False):
        return
    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, static_mask)
    model.set_attn_implementation(NAME)


def static_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """What transformers calls to build a mask.

    Args:
        attention_mask: (B, keys), 1 where a token is real; None: all are.
        mask_function: transformers' rule of which key a query sees, padding aside.

    Returns:
        Boolean, True where a query sees a key: broadcast to (B, 1, queries, keys). None: every query sees every key.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    plain = q_offset == 0 and kv_offset == 0 and mask_function in (bidirectional_mask_function, causal_mask_function)
    on_cpu = torch.device(device).type == "cpu"
    if not plain or on_cpu:
        if not on_cpu:
            kwargs |= dict.fromkeys(("allow_is_causal_skip", "allow_is_bidirectional_skip"), False)
        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, device=device, **kwargs
        )
    mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
    if mask_function is causal_mask_function and q_length > 1:
        before = torch.ones(q_length, kv_length, dtype=torch.bool, device=device).tril()[None, None]
        mask = before if mask is None else mask & before
    return mask
