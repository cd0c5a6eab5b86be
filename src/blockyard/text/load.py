"""From a configuration to tokens: read, tokenize (once), split."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from blockyard.errors import require
from blockyard.text.config import TextDataConfig
from blockyard.text.corpus import read_standard_library, standard_library_version
from blockyard.text.listing import listing_of, notes_on
from blockyard.text.progress import Progress
from blockyard.text.readers import Pieces, limited, read_path
from blockyard.text.saved import load_tokenizer
from blockyard.text.tokenizer import ByteTokenizer, Tokenizer

if TYPE_CHECKING:
    from blockyard.text.batches import TextData
    from blockyard.text.tokens import ScannedText


def load_text(config: TextDataConfig, context: int, progress: Progress | None = None) -> TextData:
    """Load a text as tokens.

    Args:
        config: what to read and how to tokenize it.
        context: tokens a batch row will have.
        progress: called with (what is being done, how much is done, out of how much).

    Raises:
        InputError: when the text cannot be read, is not text, or is too short for the context.
    """
    require("numpy", extra="train")
    from blockyard.text.batches import TextData
    from blockyard.text.tokens import encoded, scan

    text = scan(lambda: pieces_of(config), None if progress is None else partial(progress, "reading"))
    tokenizer = tokenizer_for(config, text, progress)
    tokens = encoded(
        text,
        tokenizer,
        config.cache_folder(),
        None if progress is None else partial(progress, "encoding"),
        special=config.special_tokens,
    )
    fingerprint: dict[str, Any] = {
        "source": "Python standard library" if config.path is None else config.path,
        "version": standard_library_version() if config.path is None else None,
        "sha256": text.sha256,
        "bytes": text.n_bytes,
        "documents": text.n_documents,
        "tokens": len(tokens),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.fingerprint(),
    }
    if text.spells_separator and tokenizer.special_tokens:
        # Versions before took it for the separator: what they began does not go on with other tokens.
        fingerprint["special_tokens_sha256"] = sha256(str(config.special_tokens).encode()).hexdigest()
    notes = notes_on(config, listing_of(config), text.spells_separator and bool(tokenizer.special_tokens))
    return TextData(
        tokens, tokenizer, val_fraction=config.val_fraction, context=context, fingerprint=fingerprint, notes=notes
    )


def pieces_of(config: TextDataConfig) -> Pieces:
    """Return the text of a configuration, read from its beginning."""
    if config.path is None:
        pieces = read_standard_library()
    else:
        pieces = read_path(config.path, config.format, config.text_field)
    return pieces if config.max_bytes is None else limited(pieces, config.max_bytes)


def tokenizer_for(config: TextDataConfig, text: ScannedText, progress: Progress | None) -> Tokenizer:
    """Return the tokenizer that a configuration asks for; a bpe one is trained on the text, once."""
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "bpe":
        from blockyard.text.bpe import trained_once

        return trained_once(text, config.vocab_size, config.cache_folder(), progress)
    return load_tokenizer(config.tokenizer)
