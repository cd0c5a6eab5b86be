"""Where a foreign model comes from: a folder of safetensors, a GGUF file read by transformers, or a model in memory.

No file is unpickled, and no code that a folder brings is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.files import parse_json, user_path

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
# Names of weights that only unpickling reads.
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "consolidated.00.pth")
# Bytes of a JSON file beyond which it is none that a model needs (a tokenizer's vocabulary has some 20 MB).
MOST_JSON = 200 << 20


@dataclass
class Source:
    """A foreign model's configuration and weights.

    Args:
        config: what its config.json holds.
        where: it, as errors name it.
        names: the keys of its weights.
        get: a weight by its key.
        folder: where its tokenizer's files are, if anywhere.
        module: the model itself, where it is in memory.
    """

    config: Mapping[str, Any]
    where: str
    names: frozenset[str]
    get: Callable[[str], Tensor]
    folder: Path | None = None
    module: nn.Module | None = None
    files: dict[str, str] = field(default_factory=dict)


def open_source(model: str | Path | nn.Module) -> Source:
    """Open a folder with config.json and safetensors, a .gguf file, or a model of transformers in memory.

    Raises:
        InputError: when it is none of these, or a file is missing or damaged.
    """
    if isinstance(model, nn.Module):
        return _of_module(model)
    path = user_path(model)
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if path.is_file():
        raise InputError(f"{path} is a file and no .gguf; name its folder, with a {CONFIG}: {path.parent}")
    if not path.is_dir():
        raise InputError(
            f"{str(model)!r} is no folder with a {CONFIG} and no .gguf file; of a model on the Hub get the folder "
            f"first: hf download {model} --local-dir FOLDER"
        )
    return _of_folder(path)


@contextmanager
def without_bars(transformers: Any) -> Iterator[None]:
    """Let transformers show no bar of its own meanwhile: a command says in its own words what it does."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_small_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        InputError: when it is missing, damaged, or no object.
    """
    try:
        if path.stat().st_size > MOST_JSON:
            raise InputError(f"{path} is larger than {MOST_JSON >> 20} MB; it is no file of a model")
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object, not {type(value).__name__}")
    return value


def _of_folder(folder: Path) -> Source:
    # Its `auto_map` names code that the folder brings; nothing here imports it.
    config = read_small_json(folder / CONFIG)
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        name = kind.get("quant_method") if isinstance(kind, dict) else kind
        raise InputError(f"{folder / CONFIG}: the weights are quantised ({name}); take the unquantised model")
    require("safetensors", extra="train")
    places = _places(folder)
    return Source(config, str(folder), frozenset(places), _Shards(places).get, folder)


def _places(folder: Path) -> dict[str, Path]:
    """Return the file of every weight."""
    if (folder / INDEX).is_file():
        table = read_small_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise InputError(f"{folder / INDEX} has no weight_map from keys to files")
        for name in set(table.values()):
            # A name and nothing else: an index that came from elsewhere must not lead out of its folder.
            if PurePath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise InputError(f"{folder / INDEX} names {name!r}, which is no safetensors file of this folder")
        files = {name: folder / name for name in sorted(set(table.values()))}
        held = {name: _keys(path) for name, path in files.items()}
        # An index that promises what is not there, or hides what is, is not believed in the rest.
        for key, name in table.items():
            if key not in held[name]:
                raise InputError(f"{folder / INDEX} says that {key} is in {name}, which does not hold it")
        extra = sorted(key for name, keys in held.items() for key in keys if table.get(key) != name)
        if extra:
            raise InputError(f"{folder / INDEX} does not mention {', '.join(extra[:3])}, which its files hold")
        return {key: files[name] for key, name in table.items()}
    # A folder of one file needs no index, whatever the file is called.
    found = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return dict.fromkeys(_keys(found[0]), found[0])
    if found:
        raise InputError(f"{folder} has {len(found)} safetensors files and no {INDEX} that says what is in which")
    if pickled := [name for name in PICKLED if (folder / name).exists()]:
        raise InputError(
            f"{folder} has {pickled[0]} alone, a pickle that could run code: convert it to safetensors first, "
            "with transformers' save_pretrained where you trust it"
        )
    raise InputError(f"{folder} has no {SINGLE}")


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a file of tensors, with one line for whatever is wrong with it."""
    safetensors = require("safetensors", extra="train")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is no whole file of tensors: {error}") from error


def _keys(path: Path) -> frozenset[str]:
    with _reading(path) as file:
        return frozenset(file.keys())


class _Shards:
    """Tensors of several files; one file is open at a time."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places

    def get(self, key: str) -> Tensor:
        with _reading(self._places[key]) as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor


def _of_module(module: nn.Module) -> Source:
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise InputError(f"{type(module).__name__} is no PreTrainedModel of transformers: it has no config")
    # A dequantised GGUF still says that it was quantised.
    state = module.state_dict()
    said = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
    return Source(said, f"the {type(module).__name__}", frozenset(state), state.__getitem__, None, module)


def _of_gguf(path: Path) -> Source:
    """Let transformers dequantise a GGUF file."""
    transformers = require("transformers", extra="gguf")
    require("gguf", extra="gguf")
    require("accelerate", extra="gguf")
    import torch

    try:
        with without_bars(transformers):
            module = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:
        # Whatever another's reader raises, the file is not one that it reads.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"transformers cannot read {path}: {first}") from error
    source = _of_module(module)
    source.where = str(path)
    source.files = tokenizer_files(tokenizer)
    return source


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Return the files that a tokenizer of transformers saves, by name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = {path.name: path for path in Path(folder).iterdir() if path.suffix in (".json", ".jinja")}
        return {name: path.read_text(encoding="utf-8") for name, path in found.items()}
