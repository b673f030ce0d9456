"""Generation by CTranslate2: several times faster than transformers on a CPU, the same search."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow.config import SearchConfig
from hanflow.data.batches import batches
from hanflow.errors import UserError
from hanflow.generation.conversion import ENCODER_DECODER, EXTRA, convert
from hanflow.generation.options import check_positions, even_batches, longest_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.progress import Progress

BATCH_SHARE = {"float32": 1.0, "int8": 0.5}
"""Share of `batch_tokens` that a batch takes. In float32 a step is bound by reading the weights, which many rows share; in
int8 by the rows' own activations, of which few fit the caches."""

MOST_WORKERS = 8
"""Most batches computed in parallel; each needs memory of its own, further cores split the work of one."""


class CTranslate2Engine:
    """An encoder-decoder run by CTranslate2.

    Args:
        folder: written by `convert`; read once.
        compute_type: float32 or int8, whichever the weights are stored in.
        device: cpu or cuda.

    Raises:
        UserError: the folder was not written by `convert`, or its model cannot be loaded with these settings.
    """

    name = "ctranslate2"

    def __init__(self, folder: Path, compute_type: str = "float32", device: str = "cpu"):
        import ctranslate2
        import torch

        facts = read_facts(folder)
        self.compute_type = compute_type
        self.special: dict[str, int] = facts["ids"]
        self._positions: int | None = facts["positions"]
        self._tokens: list[str] = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self._ids = {token: row for row, token in enumerate(self._tokens)}
        # One core a batch: products of few rows do not scale over cores.
        cores = torch.get_num_threads()
        self._workers = min(cores, MOST_WORKERS)
        try:
            self._translator = ctranslate2.Translator(
                str(folder),
                device=device,
                compute_type=compute_type,
                inter_threads=self._workers,
                intra_threads=max(cores // self._workers, 1),
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{folder}: CTranslate2 cannot load it as {compute_type} on {device} ({error}); export the model again, "
                "or use the transformers engine"
            ) from error
        finally:
            torch.set_num_threads(cores)  # both share one OpenMP runtime, whose number of threads CTranslate2 changes

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, compute_type: str = "float32"
    ) -> CTranslate2Engine:
        """An engine with a copy of a model's weights, converted through a temporary folder, on the model's device.

        Raises:
            UserError: CTranslate2 cannot run this model.
        """
        with tempfile.TemporaryDirectory(prefix="hanflow-ctranslate2-") as place:
            folder = Path(place) / "model"
            convert(model, tokenizer, folder, compute_type)
            return cls(folder, compute_type, model.device.type)

    def search(
        self, sources: Sequence[np.ndarray], options: SearchConfig, progress: Progress | None = None
    ) -> list[list[int]]:
        """Generated ids of every source, see `Generator.search`."""
        check_positions(self._positions, sources)
        arguments = search_arguments(options, self._positions)
        found: list[list[int]] = [[] for _ in sources]
        queued: deque[tuple[list[int], list[Any]]] = deque()

        def collect() -> None:
            rows, results = queued.popleft()
            for row, result in zip(rows, results, strict=True):
                found[row] = [self._ids[token] for token in result.result().hypotheses[0]]
            if progress is not None:
                progress.update(len(rows))

        lengths = [len(source) for source in sources]
        room = int(options.batch_tokens * BATCH_SHARE[self.compute_type])
        for rows in even_batches(lengths, room, options.beams, self._workers):
            texts = [self._source(sources[row]) for row in rows]
            queued.append((rows, self._translator.translate_batch(texts, asynchronous=True, **arguments)))
            if len(queued) > self._workers:  # one more than the workers compute
                collect()
        while queued:
            collect()
        return found

    def log_probabilities(
        self, sources: Sequence[np.ndarray], targets: Sequence[Sequence[int]], batch_tokens: int = 8192
    ) -> list[np.ndarray]:
        """The log-probability of each token of given targets.

        Args:
            sources: as in `search`.
            targets: ids, the end token included or not.
            batch_tokens: most padded source tokens of a batch.

        Returns:
            One float32 array of shape (length,) a row: natural logarithms, each given the source and the tokens before.
        """
        found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sources)
        end = self.special["eos_token_id"]
        for rows in batches([len(source) for source in sources], batch_tokens):
            # CTranslate2 appends the end token itself.
            bare = [
                targets[row][:-1] if len(targets[row]) and targets[row][-1] == end else targets[row] for row in rows
            ]
            results = self._translator.score_batch(
                [self._source(sources[row]) for row in rows],
                [[self._tokens[int(token)] for token in target] for target in bare],
                max_input_length=0,
            )
            for row, result in zip(rows, results, strict=True):
                found[row] = np.array(result.log_probs[: len(targets[row])], dtype=np.float32)
        return found

    def _source(self, source: np.ndarray) -> list[str]:
        tokens = self._tokens
        return [tokens[row] for row in source.tolist()] or [tokens[self.special["pad_token_id"]]]


def search_arguments(options: SearchConfig, positions: int | None) -> dict[str, Any]:
    """The search as arguments of `ctranslate2.Translator.translate_batch`.

    Raises:
        UserError: min_new_tokens cannot be reached.
    """
    return {
        "beam_size": options.beams,
        "patience": 1,
        "length_penalty": options.length_penalty,
        "no_repeat_ngram_size": options.no_repeat_ngram,
        "max_decoding_length": longest_text(options, positions),
        "min_decoding_length": options.min_new_tokens,  # its own default is 1
        "max_input_length": 0,  # its own default silently cuts sources at 1,024 tokens
        "return_end_token": True,  # the length then counts the end token, as in transformers
    }


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts that `convert` stored with a model.

    Raises:
        UserError: the folder was not written by `convert`, or holds a kind of model that this engine cannot run.
    """
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))[EXTRA]
        kind = facts["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not the config of a CTranslate2 model that hanflow wrote ({error!r}); give a folder below ctranslate2/ of "
            "a bundle"
        ) from error
    if kind != ENCODER_DECODER:
        raise UserError(f"{path}: holds a model of kind {kind!r}, expected {ENCODER_DECODER!r}; export the model again")
    return facts
