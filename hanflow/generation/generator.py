"""The interface to text generation: a model, its tokenizer and the engine that runs it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanflow.config import SearchConfig
from hanflow.errors import UserError
from hanflow.generation.conversion import COMPUTE_TYPES, EXTRA, conversion_problem
from hanflow.generation.ctranslate2_engine import CTranslate2Engine, read_facts
from hanflow.generation.transformers_engine import TransformersEngine
from hanflow.loading.pretrained import huggingface_folder, load_tokenizer
from hanflow.progress import log
from hanflow.text.encoding import plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.progress import Progress


class Generator:
    """Generates texts; deterministic: what a source gets does not depend on the others of its batch.

    Args:
        engine: runs the model.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, engine: TransformersEngine | CTranslate2Engine, tokenizer: PreTrainedTokenizerBase):
        self.engine, self.tokenizer = engine, tokenizer

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: str = "auto",
        compute_type: str = "float32",
    ) -> Generator:
        """A generator of a model in memory, on the device where it is.

        Args:
            model: an encoder-decoder. CTranslate2 takes a copy of its present weights, transformers uses it as it is.
            tokenizer: its tokenizer.
            engine: transformers, ctranslate2, or auto: CTranslate2 for a model on the CPU that it can run.
            compute_type: float32 or int8; int8 needs CTranslate2.

        Raises:
            UserError: the model cannot be run with these settings.
        """
        if _chosen(model, engine, compute_type) == "ctranslate2":
            return cls(CTranslate2Engine.of(model, tokenizer, compute_type), tokenizer)
        return cls(TransformersEngine(model), tokenizer)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        load: Callable[[str], PreTrainedModel],
        engine: str = "auto",
        compute_type: str = "float32",
        device: str = "cpu",
    ) -> Generator:
        """A generator of a model on disk.

        Args:
            folder: a bundle, its `huggingface/` or one of its CTranslate2 folders, or any model in Hugging Face format.
            load: makes a model of a folder in Hugging Face format, e.g. `Task.load_model`.
            engine, compute_type: as in `of`. A CTranslate2 folder of the bundle is used where it fits.
            device: cpu or cuda.

        Raises:
            UserError: the folder has no model that can be run with these settings.
        """
        folder = Path(folder)
        ready = _ready(folder, compute_type) if engine == "ctranslate2" or (engine, device) == ("auto", "cpu") else None
        source = ready or huggingface_folder(folder)
        if not ready and _is_ctranslate2(source):
            raise UserError(
                f"{source}: is a CTranslate2 model, which cannot be run with engine={engine}, compute_type={compute_type}, "
                f"device={device}; give a model in Hugging Face format, or engine=ctranslate2"
            )
        tokenizer = load_tokenizer(source)
        if ready:
            # Weights stored in int8 cannot be run in float32: their precision is lost.
            int8 = "int8" in (read_facts(ready)["compute_type"], compute_type)
            return cls(CTranslate2Engine(ready, "int8" if int8 else "float32", device), tokenizer)
        return cls.of(load(str(source)).to(device), tokenizer, engine, compute_type)

    @property
    def description(self) -> str:
        """Engine and arithmetic, for display."""
        return f"{self.engine.name}, {self.engine.compute_type}"

    def search(
        self, sources: Sequence[np.ndarray], options: SearchConfig, progress: Progress | None = None
    ) -> list[list[int]]:
        """The best sequence of ids for every source, in the sources' order.

        Args:
            sources: int32 arrays of shape (length,): token ids, end-of-sequence included.
            options: the search and the size of a batch; `engine` and `compute_type` are not read.
            progress: updated by every finished batch.

        Returns:
            Ids without the decoder's start; the last is the end token unless max_new_tokens came first.

        Raises:
            UserError: a source is longer than the model's positions, or min_new_tokens cannot be reached.
        """
        return self.engine.search(sources, options, progress) if len(sources) else []

    def generate(
        self, sources: Sequence[np.ndarray], options: SearchConfig, progress: Progress | None = None
    ) -> list[str]:
        """One text a source, in the sources' order; arguments and errors as in `search`."""
        return self.decode(self.search(sources, options, progress), options.remove_tokens)

    def decode(self, generated: Sequence[Sequence[int]], remove_tokens: Sequence[str] = ()) -> list[str]:
        """Texts of what `search` returned, up to the end token, without begin, padding and the listed tokens.

        Unknown tokens stay visible. skip_special_tokens is not used: KoBART marks emojis and speaker tokens as special, and
        both are part of the text.
        """
        tokenizer, special = self.tokenizer, self.engine.special
        vocabulary = tokenizer.get_vocab()
        unknown = [token for token in remove_tokens if token not in vocabulary]
        if unknown:
            log.warning("remove_tokens: %s not in the vocabulary: nothing to remove", ", ".join(unknown))
        removed = {*special.values(), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        removed |= {vocabulary.get(token) for token in remove_tokens}
        texts = []
        for ids in generated:
            whole = itertools.takewhile(lambda token: token != special["eos_token_id"], ids)
            texts.append(plain_text([token for token in whole if token not in removed], tokenizer).strip())
        return texts


def _chosen(model: PreTrainedModel, engine: str, compute_type: str) -> str:
    if compute_type not in COMPUTE_TYPES:
        raise UserError(f"compute_type={compute_type}: is not known; known: {', '.join(COMPUTE_TYPES)}")
    if engine == "transformers":
        if compute_type != "float32":
            raise UserError(f"compute_type={compute_type} needs CTranslate2: set engine=ctranslate2, or leave it auto")
        return engine
    if engine == "auto" and compute_type == "float32" and model.device.type != "cpu":
        return "transformers"
    problem = conversion_problem(model)
    if not problem:
        return "ctranslate2"
    if engine == "ctranslate2" or compute_type != "float32":
        raise UserError(
            f"engine={engine}, compute_type={compute_type}: {problem}; set engine=transformers and compute_type=float32"
        )
    return "transformers"


def _ready(folder: Path, compute_type: str) -> Path | None:
    """The CTranslate2 folder at `folder`, or in the bundle there, that can be run in a compute type; None: there is none."""
    if _is_ctranslate2(folder):
        return folder
    # float32 weights serve int8, too (CTranslate2 rounds them when it loads), but not the other way round.
    for stored in dict.fromkeys((compute_type, "float32")):
        if _is_ctranslate2(folder / "ctranslate2" / stored):
            return folder / "ctranslate2" / stored
    return None


def _is_ctranslate2(folder: Path) -> bool:
    config = folder / "config.json"
    return (folder / "model.bin").is_file() and config.is_file() and f'"{EXTRA}"' in config.read_text(encoding="utf-8")
