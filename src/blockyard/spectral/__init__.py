"""Spectral mixing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.spectral.mixer import SpectralMixer as SpectralMixer
    from blockyard.spectral.training import param_groups as param_groups
else:
    __all__ = exports(
        __name__,
        {
            "mixer": "SpectralMixer",
            "training": "param_groups",
        },
    )
