"""The source documents' own names and call forms, thin over the library: one module per document.

    basics.py              Linear, RMSNorm, SwiGLU, RotaryPositionalEmbedding, … of the language-model basics
    vein_flow.py           VeinSubspaceShared, TVAAttention, VFTBlock, create_vft_block
    spectre_nlp.py         SpectreBlockNLP
    complex_block.py       ComplexAttention, TransformerBlock, … on real and imaginary parts apart
    price_transformer.py   MultiHeadLatentAttention, PriceTransformer, its configurations and helpers

    from blockyard.compat.vein_flow import VFTBlock

The documents' examples run with these imports alone exchanged. The mathematics is the library's: where a document is
wrong, its module says what was mended.

Use them to run a document's code or to load its weights; in new code use the wings, whose names and options are the
same everywhere.

What each document gets wrong: docs/vein.md, docs/spectral.md, docs/complex.md, docs/latent.md, docs/prices.md,
docs/standard.md; measured, one by one: docs/claims.md.
"""
