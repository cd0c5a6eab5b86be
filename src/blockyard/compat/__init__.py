"""The source documents' own names and call forms, thin over the library: one module per document."""
