"""Text generation: beam search by transformers or CTranslate2 behind one interface, and sampling from language models."""

from hanflow.generation.conversion import COMPUTE_TYPES, conversion_problem, convert
from hanflow.generation.generator import Generator
from hanflow.generation.transformers_engine import generation_config

__all__ = ["COMPUTE_TYPES", "Generator", "conversion_problem", "convert", "generation_config"]
