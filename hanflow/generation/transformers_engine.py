"""Generation by transformers: any encoder-decoder, any device.

Every parameter of the search is set here and none taken from a model's own generation_config.json (BART's have 20 tokens
at most, or no repeated trigram), so that a setting means the same for every model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow.config import SearchConfig
from hanflow.data.batches import batches
from hanflow.generation.options import check_positions, longest_text, special_ids
from hanflow.models import evaluating

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel

    from hanflow.progress import Progress


class TransformersEngine:
    """An encoder-decoder in memory, searched by its own `generate`.

    Args:
        model: run in evaluation mode, on its device and in its dtype; its own mode is restored after every search.

    Raises:
        UserError: its config lacks an id that generation needs.
    """

    name = "transformers"
    compute_type = "float32"

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self.special = special_ids(model)

    def search(
        self, sources: Sequence[np.ndarray], options: SearchConfig, progress: Progress | None = None
    ) -> list[list[int]]:
        """Generated ids of every source, see `Generator.search`."""
        model, pad, end = self._model, self.special["pad_token_id"], self.special["eos_token_id"]
        check_positions(positions(model), sources)
        search = generation_config(model, options)
        found: list[list[int]] = [[] for _ in sources]
        with searching(model, search):
            for rows in batches([len(source) for source in sources], options.batch_tokens, copies=options.beams):
                inputs = padded([sources[row] for row in rows], pad, model)
                generated = model.generate(**inputs, generation_config=search)
                for row, (_start, *tokens) in zip(rows, generated.tolist(), strict=True):
                    found[row] = _until_end(tokens, end)
                if progress is not None:
                    progress.update(len(rows))
        return found


@contextmanager
def searching(model: PreTrainedModel, search: GenerationConfig) -> Iterator[None]:
    """A model ready for `generate`: in evaluation mode, without gradients and with no other config; all is restored."""
    own = model.generation_config
    # generate() fills whatever a given config leaves open from the model's own one: let that be the same.
    model.generation_config = search
    try:
        with evaluating(model):
            yield
    finally:
        model.generation_config = own


def generation_config(model: PreTrainedModel, options: SearchConfig) -> GenerationConfig:
    """The complete search as transformers' config: with it, `model.generate` does what this engine does.

    Raises:
        UserError: min_new_tokens cannot be reached.
    """
    from transformers import GenerationConfig

    settings: dict[str, Any] = {
        "num_beams": options.beams,
        "max_new_tokens": longest_text(options, positions(model)),
        "min_new_tokens": options.min_new_tokens,
        "no_repeat_ngram_size": options.no_repeat_ngram,
        "do_sample": False,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "use_cache": True,
        **special_ids(model),
    }
    if options.beams > 1:  # transformers refuses to save a greedy search that has them
        settings |= {"length_penalty": options.length_penalty, "early_stopping": True}
        if options.no_repeat_ngram or options.min_new_tokens:  # else no token is forbidden: nothing to renormalise
            settings["renormalize_logits"] = True
    return GenerationConfig(**settings)


def positions(model: PreTrainedModel) -> int | None:
    """Longest sequence that the model can read or write, in tokens; None: unlimited."""
    return getattr(model.config, "max_position_embeddings", None)


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def padded(
    rows: Sequence[np.ndarray], pad: int, model: PreTrainedModel, *, left: bool = False
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows: int64 of shape (rows, longest), on the model's device.

    Args:
        rows: int32 arrays of shape (length,).
        pad: id of padding, on the right unless `left`.
    """
    import torch

    width = max(1, *map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        begin = width - len(row) if left else 0
        ids[at, begin : begin + len(row)] = row
        mask[at, begin : begin + len(row)] = 1
    mask[:, -1 if left else 0] = 1  # also of a row without tokens: attention over nothing at all would be NaN
    return {
        "input_ids": torch.from_numpy(ids).to(model.device),
        "attention_mask": torch.from_numpy(mask).to(model.device),
    }
