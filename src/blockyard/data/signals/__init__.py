"""Radio signals: made on the fly or read from recordings, and the bound of their classification."""
