"""Text from a trained language model: sampling, streaming, stopping, beams, drafts.

    logits -> repetition penalty -> temperature -> top-k, top-p, min-p -> a draw with the row's own seed
    drafts: a proposal x is kept with probability min(1, p(x) / q(x)), otherwise replaced by a draw from max(p − q, 0)

A row of a batch is token for token what it is alone, whoever stands beside it. A draft changes time, never the
distribution.

Files, in reading order:

    sampling.py      SamplingConfig, and every filter as a small function on [B, V]
    reading.py       prompts into caches: in chunks, those of similar length side by side
    beginnings.py    what prompts begin with alike, found once for all and read once
    room.py          how many rows the memory holds
    decode.py        a token per row and step, with the mixers' own caches; the next prompt where a row has ended
    stream.py        generate, generate_batch, generate_text: what is certain, as soon as it is
    text.py          no half characters, and nothing from a stop string on
    beam.py          beam_search: the most probable continuations
    speculative.py   a small model proposes, the model checks several tokens in one pass

Use generate_text for one prompt, generate_batch for any number of them, beam_search where the most probable text is
wanted, a draft where it is several times faster than the model and often right.

What a token costs, and when a draft pays: docs/decoding.md.
"""

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
