"""The configuration: an architecture of ours as a plain dictionary, under the names that transformers asks for."""

# Annotations are values here: transformers checks the fields by them.
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from blockyard.errors import InputError, one_of, require
from blockyard.files import plain
from blockyard.models.config import BlocksConfig
from blockyard.models.lm import LMConfig
from blockyard.registry.options import check_options, options_of
from blockyard.tasks.classify.model import EncoderConfig

if TYPE_CHECKING:
    from huggingface_hub.dataclasses import strict
    from transformers import PreTrainedConfig
else:
    PreTrainedConfig = require("transformers", extra="hf").PreTrainedConfig
    strict = require("huggingface_hub.dataclasses", extra="hf").strict

# The name of our layers among transformers' types of layers, which says to its caches what to keep.
LAYER = "blockyard"


@strict
class BlockyardConfig(PreTrainedConfig):
    """A model of blocks, as transformers stores it.

    Attributes:
        architecture: the fields of `LMConfig`, or those of `EncoderConfig`, with the blocks as a choice
            (`"spectral*3/standard"`).
        task: which of the two: lm or classify.
        use_cache: keep a cache when a model is called without one in inference.
        aux_loss_weight: factor on auxiliary losses of blocks (a router's balance) in training.
        z_loss_weight: factor on routers' z-losses in training.
    """

    model_type = "blockyard"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers adds lists to it)

    architecture: dict[str, Any] | None = None
    task: Literal["lm", "classify"] = "lm"
    use_cache: bool = True
    aux_loss_weight: float = 0.01
    z_loss_weight: float = 0.001
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Without one: transformers makes such a configuration to learn what the defaults are.
        self.architecture = {} if self.architecture is None else dict(self.architecture)
        one_of(("lm", "classify"), task=self.task)
        labels = self.architecture.get("n_classes")
        if labels is not None and self.id2label is None:
            kwargs.setdefault("num_labels", labels)
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: LMConfig | EncoderConfig, **settings: Any) -> Self:
        """Return the configuration of an architecture of ours.

        Args:
            model: the architecture.
            settings: other fields: aux_loss_weight, eos_token_id, ….
        """
        own = {f.name: getattr(model, f.name) for f in fields(model)} | {"blocks": model.choice}
        task: Literal["lm", "classify"] = "lm" if isinstance(model, LMConfig) else "classify"
        return cls(architecture=plain(own), task=task, **settings)

    def language_model(self) -> LMConfig:
        """Return the architecture of a language model.

        Raises:
            InputError: for one of another task, or options that are not, or of another type.
        """
        if self.task != "lm":
            raise InputError("the configuration is that of a text classifier, which writes no text")
        return LMConfig(**self._checked(LMConfig, self._given()))

    def encoder(self) -> EncoderConfig:
        """Return the architecture of a text classifier; a language model gives a causal one that reads the last token.

        Raises:
            InputError: as `language_model`, and for a language model with learned positions, which encoders lack.
        """
        given = self._given()
        if self.task == "lm":
            if self.language_model().learns_positions:
                raise InputError("a text classifier has no learned positions, and this language model has; train one")
            shared = {f.name for f in fields(BlocksConfig)} | {"vocab_size", "context"}
            given = {name: value for name, value in given.items() if name in shared}
            given |= {"causal": True, "pooling": "last", "n_classes": self.num_labels}
        found = EncoderConfig(**self._checked(EncoderConfig, given))
        # Whoever loads it may want other classes: `from_pretrained(path, num_labels=5)`.
        return replace(found, n_classes=self.num_labels or found.n_classes)

    def _given(self) -> dict[str, Any]:
        return dict(self.architecture or {})

    @staticmethod
    def _checked(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
        return check_options(options_of(cls), given, "the configuration's architecture")

    def validate_layer_type(self) -> None:
        """Check nothing: our layers' type is none of transformers' own, and is not stored."""

    # A property, not a field: whoever reads the file by transformers' base class would refuse names that it does not
    # know.
    @property
    def layer_types(self) -> list[str]:
        """The type of every layer, as transformers' caches ask for it."""
        return [LAYER] * self.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._size("vocab_size")

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.architecture = {**self._given(), "vocab_size": value}

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._size("d_model")

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return self._size("n_layers")

    @property
    def num_attention_heads(self) -> int:
        """Number of heads."""
        return self._size("n_heads")

    @property
    def max_position_embeddings(self) -> int:
        """Tokens that the model was trained on at once."""
        return self._size("context")

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the embedding is the output matrix, too."""
        return bool(self._given().get("tied", False))

    def _size(self, name: str) -> int:
        known = options_of(LMConfig if self.task == "lm" else EncoderConfig)
        default = 0 if known[name].required else known[name].default
        return int(self._given().get(name, default))
