"""Text from a trained language model: sampling, streaming, stopping, beams, drafts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.generation.beam import Hypothesis as Hypothesis
    from blockyard.generation.beam import beam_search as beam_search
    from blockyard.generation.sampling import SamplingConfig as SamplingConfig
    from blockyard.generation.speculative import Acceptance as Acceptance
    from blockyard.generation.stream import Batch as Batch
    from blockyard.generation.stream import end_of_text as end_of_text
    from blockyard.generation.stream import generate as generate
    from blockyard.generation.stream import generate_batch as generate_batch
    from blockyard.generation.stream import generate_text as generate_text
    from blockyard.generation.stream import prompt_tokens as prompt_tokens
    from blockyard.generation.text import Detokenizer as Detokenizer
    from blockyard.generation.text import StopMatcher as StopMatcher
    from blockyard.generation.text import TextStream as TextStream
else:
    __all__ = exports(
        __name__,
        {
            "beam": "Hypothesis beam_search",
            "sampling": "SamplingConfig",
            "speculative": "Acceptance",
            "stream": "Batch end_of_text generate generate_batch generate_text prompt_tokens",
            "text": "Detokenizer StopMatcher TextStream",
        },
    )
