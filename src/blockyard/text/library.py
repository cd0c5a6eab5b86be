"""A foreign tokenizer as its `tokenizer.json` describes it, encoded by the tokenizers library.

Tokens are bytes here, too: those of a byte-level vocabulary, or of a SentencePiece one, whose ▁ is a space and whose
<0x0A> is a byte. Joined, the bytes of tokens are the text, wherever in it they stand; so a SentencePiece tokenizer
gives the space back that it puts before a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from blockyard.errors import InputError, require
from blockyard.files import parse_json, write_atomically
from blockyard.text.bpe_files import from_printable
from blockyard.text.tokenizer import (
    DESCRIPTION_FILE,
    END_OF_TEXT,
    bytes_of,
    decoded,
    fingerprint_of,
    utf8,
    write_json,
)

TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"
# What may stand beside it, and is kept with it: how it is used, and how a conversation is written.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", GENERATION, "chat_template.jinja")
# What ends a text in tokenizers that come without a configuration, most usual first.
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "[SEP]")
# Characters that are encoded at a time where a text can be cut, and those looked at on either side of a cut.
BLOCK, SEAM = 1 << 16, 64


class LibraryTokenizer:
    """Any byte-level or SentencePiece-like tokenizer of the tokenizers library.

    Args:
        files: tokenizer.json and what stands beside it, by name, as text.
        vocab_size: number of rows that the model has for tokens; more than the tokenizer's own are never made.

    Attributes:
        prefix_ids: tokens that stand before every text, such as a BOS.
        end_ids: tokens that end a text.

    Raises:
        InputError: for a file that is none, or a vocabulary of another kind.
    """

    name = "library"

    def __init__(self, files: Mapping[str, str], vocab_size: int | None = None) -> None:
        self.files = {name: text for name, text in files.items() if name in (TOKENIZER, *BESIDE)}
        library = require("tokenizers", extra="train")
        if TOKENIZER not in self.files:
            raise InputError(f"the tokenizer has no {TOKENIZER}; save it with transformers' fast tokenizer first")
        self._said = _parsed(self.files[TOKENIZER], TOKENIZER)
        try:
            self._library = library.Tokenizer.from_str(self.files[TOKENIZER])
        except Exception as error:
            # The library raises bare exceptions.
            raise InputError(f"{TOKENIZER} is damaged: {str(error).splitlines()[0] if str(error) else error}") from None
        self._library.no_truncation()
        self._library.no_padding()
        config = _parsed(self.files.get("tokenizer_config.json", "{}"), "tokenizer_config.json")
        generation = _parsed(self.files.get(GENERATION, "{}"), GENERATION)
        added = self._library.get_added_tokens_decoder()
        self.special_tokens = {token.content: number for number, token in added.items() if token.special}
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        own = max(vocabulary.values(), default=-1) + 1
        self.vocab_size = own if vocab_size is None else vocab_size
        if self.vocab_size < own:
            raise InputError(f"the tokenizer has {own} tokens, the model {self.vocab_size} rows for them")
        whole = {token.content: number for number, token in added.items()}
        self._bytes = _token_bytes(self._said, vocabulary, whole, self.vocab_size)
        names = {name: _content(config.get(name)) for name in ("bos_token", "eos_token")}
        self.end_ids = _ends(generation.get("eos_token_id"), vocabulary.get(names["eos_token"]), self.vocab_size)
        # Text is encoded without what the file puts around it; what stands in front is told apart.
        self.prefix_ids = self._before_text()
        self.separator_id: int = self._between_texts(vocabulary, names)
        self._cuttable = _has_cuts(self._said)

    def _between_texts(self, vocabulary: Mapping[str, int], names: Mapping[str, str | None]) -> int:
        """Return the token that stands between two documents.

        Raises:
            InputError: when nothing names one. An ordinary token would be read as a word there, and end what is
                generated wherever the model writes that word.
        """
        named = (END_OF_TEXT, names["eos_token"], names["bos_token"])
        # What files without a configuration beside them call it, if it is a special token of theirs.
        usual = (name for name in ENDS if name in self.special_tokens)
        found = (vocabulary[name] for name in (*named, *usual) if name is not None and name in vocabulary)
        separator = next(found, next(iter(self.end_ids), None))
        if separator is None:
            raise InputError(
                f"nothing names the token that ends a text: put a tokenizer_config.json with an eos_token beside the "
                f"{TOKENIZER}"
            )
        return separator

    def _before_text(self) -> tuple[int, ...]:
        """Return what the tokenizer puts in front of a text, such as a BOS, without what it puts behind."""
        # A pair's second text would have more in front of it; one letter stands for all texts.
        around, bare = (self._library.encode("a", add_special_tokens=special).ids for special in (True, False))
        if not bare:
            around, bare = self._library.encode("", add_special_tokens=True).ids, list(self.end_ids[:1])
        # Looked for from the end: a BOS may be the same token as an EOS, and only its place tells them apart.
        for start in range(len(around) - len(bare), -1, -1):
            if bare and around[start : start + len(bare)] == bare:
                return tuple(around[:start])
        return tuple(around)

    @property
    def chat_template(self) -> str | None:
        """How a conversation is written, as a Jinja template; None where nobody says."""
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"]
        said = _parsed(self.files.get("tokenizer_config.json", "{}"), "tokenizer_config.json").get("chat_template")
        if isinstance(said, list):
            said = {each.get("name"): each.get("template") for each in said if isinstance(each, dict)}.get("default")
        return said if isinstance(said, str) else None

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation as its template writes it, with the beginning of the answer.

        The template is rendered in Jinja's sandbox: it may have come from anywhere.

        Args:
            messages: `{"role": "user", "content": "..."}` and the like.

        Raises:
            InputError: when there is no template, or it refuses the messages.
        """
        template = self.chat_template
        if template is None:
            raise InputError("this tokenizer brings no chat template: write the prompt as its model expects it")
        sandbox, jinja = require("jinja2.sandbox", extra="train"), require("jinja2", extra="train")
        # As transformers renders them: templates break out of loops, and some name the day.
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )

        def refuse(text: str) -> None:
            raise jinja.TemplateError(text)

        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        config = _parsed(self.files.get("tokenizer_config.json", "{}"), "tokenizer_config.json")
        names = {
            name: _content(config.get(name)) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        try:
            # A template asks whether tools are none, which what nobody named is not.
            given = {"messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None}
            return str(environment.from_string(template).render(**given, **names))
        except (jinja.TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"the chat template refuses the conversation: {first}") from None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; `special` keeps special tokens that it spells whole."""
        return list(chain.from_iterable(self.encode_blocks((text,), special=special)))

    def encode_iterable(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[int]:
        """Yield the ids of the joined chunks."""
        for block in self.encode_blocks(chunks, special=special):
            yield from block

    def encode_blocks(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[Sequence[int]]:
        """Yield the ids of the joined chunks in blocks; a tokenizer whose text has no safe cuts reads it whole."""
        held: list[str] = []
        length = 0
        for chunk in chunks:
            held.append(chunk)
            length += len(chunk)
            while self._cuttable and length >= 2 * BLOCK:
                text = "".join(held)
                place = self._cut(text, special)
                if place is None:
                    held = [text]
                    break
                yield self._encode(text[:place], special)
                held, length = [text[place:]], len(text) - place
        if length:
            yield self._encode("".join(held), special)

    def _encode(self, text: str, special: bool) -> list[int]:
        utf8(text)
        self._library.encode_special_tokens = not special
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def _cut(self, text: str, special: bool) -> int | None:
        """Find a place behind which text is encoded as it is by itself: between lines, and asked of the tokenizer."""
        place = BLOCK
        for _ in range(16):
            place = text.find("\n", place, len(text) - SEAM) + 1
            if place == 0:
                return None
            before, behind = text[place - SEAM : place], text[place : place + SEAM]
            if not behind[0].isspace() and self._encode(before + behind, special) == self._encode(
                before, special
            ) + self._encode(behind, special):
                return place
        return None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD unless `errors` says otherwise."""
        return decoded(self._bytes, ids, errors)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for; none for one that the tokenizer never makes."""
        return bytes_of(self._bytes, token)

    def fingerprint(self) -> str:
        """Return a sha256 that is equal for tokenizers that encode equally."""
        return fingerprint_of({"tokenizer": self._said, "vocab_size": self.vocab_size})

    def save(self, folder: str | Path) -> None:
        """Write the files and a description into a folder (made if missing)."""
        where = Path(folder)
        for name, text in self.files.items():
            write_atomically(where / name, text)
        for name in BESIDE:
            # Left by a save that was killed: another tokenizer's template would be read as this one's.
            if name not in self.files:
                (where / name).unlink(missing_ok=True)
        # Written last: a folder with a description is complete.
        description = {"kind": self.name, "special_tokens": self.special_tokens, "vocab_size": self.vocab_size}
        write_json(where / DESCRIPTION_FILE, description)

    @classmethod
    def load(cls, folder: str | Path, vocab_size: int | None = None) -> LibraryTokenizer:
        """Read a folder with a tokenizer.json.

        Raises:
            InputError: when a file is missing or damaged.
        """
        return cls(read_files(Path(folder)), vocab_size)


class Conversation:
    """A tokenizer whose every text is a message that wants an answer, written as its model's template has it.

    Args:
        tokenizer: one with a chat template.
        system: what is said to the model before the message.

    Raises:
        InputError: when the tokenizer has no template.
    """

    # The template writes what stands in front.
    prefix_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError(f"the run's tokenizer ({tokenizer.name}) brings no chat template: give the prompt as text")
        self._tokenizer, self._system = tokenizer, system

    def encode(self, text: str) -> list[int]:
        """Return the conversation up to where the answer begins."""
        before = [] if self._system is None else [{"role": "system", "content": self._system}]
        written = self._tokenizer.chat([*before, {"role": "user", "content": text}])
        ids: list[int] = self._tokenizer.encode(written, special=True)
        return ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def read_files(folder: Path) -> dict[str, str]:
    """Return the files of a tokenizer in a folder, by name, as text."""
    found = {}
    for name in (TOKENIZER, *BESIDE):
        path = folder / name
        if path.is_file():
            try:
                found[name] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if TOKENIZER not in found:
        raise InputError(f"{folder} has no {TOKENIZER}: only tokenizers of the tokenizers library are read")
    return found


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} should hold a JSON object, not {type(value).__name__}")
    return value


def _content(token: Any) -> str | None:
    """Return the text of a special token, which may be written with its settings."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ends(said: Any, eos: int | None, size: int) -> tuple[int, ...]:
    several = said if isinstance(said, list) else [] if said is None else [said]
    found = [token for token in several if type(token) is int and 0 <= token < size]
    return tuple(dict.fromkeys([*found, *([] if eos is None else [eos])]))


def _steps(part: Any, inner: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder, in order; a sequence is its members."""
    if not isinstance(part, Mapping):
        return []
    if part.get("type") == "Sequence":
        return [step for each in part.get(inner) or [] for step in _steps(each, inner)]
    return [part]


def _token_bytes(
    said: Mapping[str, Any], vocabulary: Mapping[str, int], whole: Mapping[str, int], size: int
) -> dict[int, bytes]:
    """Return the bytes of every token, by what the decoder does to it.

    Raises:
        InputError: for a decoder of another kind.
    """
    kinds = {step.get("type") for step in _steps(said.get("decoder"), "decoders")}
    if "ByteLevel" in kinds:
        spell: Callable[[str], bytes] = from_printable
    elif kinds & {"ByteFallback", "Metaspace"} or (said.get("model") or {}).get("byte_fallback"):
        spell = _piece
    else:
        known = ", ".join(sorted(str(kind) for kind in kinds)) or "none"
        raise InputError(f"the tokenizer's decoder is {known}: only byte-level and SentencePiece vocabularies are read")
    table = dict.fromkeys(range(size), b"")
    for text, number in vocabulary.items():
        try:
            table[number] = utf8(text) if text in whole else spell(text)
        except KeyError:
            # A token of no bytes of its own, added without being said to be.
            table[number] = utf8(text)
    return table


def _piece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return utf8(text.replace("\u2581", " "))


def _has_cuts(said: Mapping[str, Any]) -> bool:
    """Return whether text is first cut into words, so that what stands far away changes nothing."""
    splits = _steps(said.get("pre_tokenizer"), "pretokenizers")
    local = {"ByteLevel", "Split", "Digits", "Punctuation"}
    prefixed = any(step.get("add_prefix_space") for step in splits)
    forms = {step.get("type") for step in _steps(said.get("normalizer"), "normalizers")}
    return bool(splits) and {step.get("type") for step in splits} <= local and not prefixed and forms <= {"NFC"}
