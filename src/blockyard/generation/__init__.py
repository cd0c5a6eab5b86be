"""Text from a trained language model: sampling, streaming and stopping."""

from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.stream import Batch, generate, generate_batch, generate_text, prompt_tokens
from blockyard.generation.text import Detokenizer, StopMatcher, TextStream

__all__ = [
    "Batch",
    "Detokenizer",
    "SamplingConfig",
    "StopMatcher",
    "TextStream",
    "generate",
    "generate_batch",
    "generate_text",
    "prompt_tokens",
]
