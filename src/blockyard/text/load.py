"""From a configuration to tokens: read, tokenize (once), split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError, require
from blockyard.text.config import TextDataConfig
from blockyard.text.corpus import read_standard_library, standard_library_version
from blockyard.text.listing import LeftOut, listing_of, notes_on, token_files_of
from blockyard.text.progress import Progress
from blockyard.text.readers import Pieces, limited, read_path
from blockyard.text.saved import load_tokenizer
from blockyard.text.tokenizer import ByteTokenizer, Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from blockyard.text.batches import TextData
    from blockyard.text.tokens import ScannedText


def load_text(
    config: TextDataConfig, context: int, progress: Progress | None = None, *, tokenizer: Tokenizer | None = None
) -> TextData:
    """Load a text as tokens.

    Args:
        config: what to read and how to tokenize it.
        context: tokens a batch row will have.
        progress: called with (what is being done, how much is done, out of how much).
        tokenizer: one that is at hand, such as a trained model's, in place of what `config` names.

    Raises:
        InputError: when the text cannot be read, is not text, or is too short for the context.
    """
    require("numpy", extra="train")
    from blockyard.text.tokens import encoded, scan

    files = token_files_of(config)
    if files is not None:
        return _load_tokens(config, files, context, progress, tokenizer)
    left_out = LeftOut()
    text = scan(lambda: pieces_of(config, left_out), None if progress is None else partial(progress, "reading"))
    # As the first reading found it: later ones would count again.
    left_out = replace(left_out)
    tokenizer = tokenizer_for(config, text, progress) if tokenizer is None else tokenizer
    tokens = encoded(
        text,
        tokenizer,
        config.cache_folder(),
        None if progress is None else partial(progress, "encoding"),
        special=config.special_tokens,
    )
    fingerprint = _fingerprint(config, text.sha256, text.n_bytes, text.n_documents, len(tokens), tokenizer)
    if text.spells_separator and tokenizer.special_tokens:
        # Versions before took it for the separator: what they began does not go on with other tokens.
        fingerprint["special_tokens_sha256"] = sha256(str(config.special_tokens).encode()).hexdigest()
    spells = text.spells_separator and bool(tokenizer.special_tokens)
    notes = notes_on(config, listing_of(config), spells, left_out)
    # Special tokens that documents spell end them there: then the separators alone say where the borders are.
    documents = None if spells and config.special_tokens else text.n_documents
    return _split(config, tokens, tokenizer, context, fingerprint, notes, documents=documents)


def _load_tokens(
    config: TextDataConfig,
    files: Sequence[Path],
    context: int,
    progress: Progress | None,
    tokenizer: Tokenizer | None,
) -> TextData:
    """Load a text that comes as tokens."""
    from blockyard.text.token_files import read_token_files
    from blockyard.text.tokens import separates

    if config.tokenizer == "bpe" and tokenizer is None:
        raise InputError(
            f"data.tokenizer=bpe is learnt from text, and data.path={config.path!r} holds tokens; name the tokenizer "
            "that made them"
        )
    tokenizer = tokenizer or named_tokenizer(config)
    assert tokenizer is not None
    found = read_token_files(files, config, tokenizer, None if progress is None else partial(progress, "reading"))
    fingerprint = _fingerprint(config, found.sha256, found.n_bytes, found.n_documents, len(found.tokens), tokenizer)
    if config.pack == "documents" and not separates(tokenizer):
        raise InputError(
            f"data.pack=documents: the tokenizer ({tokenizer.name}) has no token of its own that ends a document, so "
            "no border in these tokens can be known; name the one that made them with data.tokenizer"
        )
    return _split(config, found.tokens, tokenizer, context, fingerprint, found.notes, spell=False)


def _split(
    config: TextDataConfig,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    context: int,
    fingerprint: dict[str, Any],
    notes: Sequence[str],
    *,
    documents: int | None = None,
    spell: bool = True,
) -> TextData:
    """Return the two parts of a text, in plain rows or in rows of documents.

    Args:
        documents: how many there are; None where the separators alone say so.
        spell: whether special tokens stand for the text that spells them.

    Raises:
        InputError: when rows of documents are asked for and no border between documents can be known.
    """
    from blockyard.text.batches import TextData
    from blockyard.text.packed import PackedText, check_borders

    kind = TextData
    if config.pack == "documents":
        check_borders(tokens, tokenizer.separator_id, documents, tokenizer.name)
        kind = PackedText
    return kind(
        tokens,
        tokenizer,
        val_fraction=config.val_fraction,
        context=context,
        fingerprint=fingerprint,
        notes=notes,
        specials_spell=spell,
    )


def _fingerprint(
    config: TextDataConfig, sha256: str, n_bytes: int, n_documents: int, n_tokens: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    return {
        "source": "Python standard library" if config.path is None else config.path,
        "version": standard_library_version() if config.path is None else None,
        "sha256": sha256,
        "bytes": n_bytes,
        "documents": n_documents,
        "tokens": n_tokens,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.fingerprint(),
    }


def pieces_of(config: TextDataConfig, left_out: LeftOut | None = None) -> Pieces:
    """Return the text of a configuration, read from its beginning."""
    if config.path is None:
        pieces = read_standard_library()
    else:
        pieces = read_path(config.path, config.format, config.text_field, left_out)
    return pieces if config.max_bytes is None else limited(pieces, config.max_bytes, left_out)


def tokenizer_for(config: TextDataConfig, text: ScannedText, progress: Progress | None) -> Tokenizer:
    """Return the tokenizer that a configuration asks for; a bpe one is trained on the text, once."""
    tokenizer = named_tokenizer(config)
    if tokenizer is None:
        from blockyard.text.bpe import trained_once

        return trained_once(text, config.vocab_size, config.cache_folder(), progress)
    return tokenizer


def named_tokenizer(config: TextDataConfig) -> Tokenizer | None:
    """Return the tokenizer that a configuration names; None for one that is learnt from the text.

    Raises:
        InputError: where there is none of that name.
    """
    if config.tokenizer == "bpe":
        return None
    return ByteTokenizer() if config.tokenizer == "byte" else load_tokenizer(config.tokenizer)
