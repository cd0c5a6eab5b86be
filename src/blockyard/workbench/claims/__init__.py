"""The source documents' claims as data: what each says, how it is measured here, and what came out."""
