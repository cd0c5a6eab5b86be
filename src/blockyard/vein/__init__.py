"""vein."""
