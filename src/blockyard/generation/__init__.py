"""Text from a trained language model: sampling, streaming, stopping, beams, drafts."""

from blockyard.generation.beam import Hypothesis, beam_search
from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.speculative import Acceptance
from blockyard.generation.stream import Batch, end_of_text, generate, generate_batch, generate_text, prompt_tokens
from blockyard.generation.text import Detokenizer, StopMatcher, TextStream

__all__ = [
    "Acceptance",
    "Batch",
    "Detokenizer",
    "Hypothesis",
    "SamplingConfig",
    "StopMatcher",
    "TextStream",
    "beam_search",
    "end_of_text",
    "generate",
    "generate_batch",
    "generate_text",
    "prompt_tokens",
]
