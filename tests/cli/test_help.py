"""Help that a person reads: a page at most, in eighty columns, groups by name, the chosen blocks' options alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockyard.cli import app, main, shape_cache
from blockyard.cli.finding import command_names, load_command
from blockyard.cli.help import PAGE
from blockyard.cli.overview import PURPOSES
from blockyard.cli.shape import Shape, chosen_blocks
from blockyard.cli.shape_cache import fingerprint, shape_of
from blockyard.registry.register import entries, has_additions
from tests.fixtures.cli import error_of, shown, toys
from tests.fixtures.folders import ROOT


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # One cache for the whole file: what it holds is what most of these tests are about.
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path_factory.getbasetemp() / "help-cache"))


@pytest.mark.parametrize("name", command_names())
def test_help_is_one_page_of_eighty_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, *name.split(), "--help").splitlines()
    assert len(lines) <= PAGE
    assert not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize("name", command_names())
def test_what_people_use_is_there_to_be_shown(name: str) -> None:
    command = load_command(name)
    shape = shape_of(command)
    known = [word for word in command.common if shape.find(word)]
    placed = [flag for flag in shape.flags if not flag.words]
    long = sum(len(section.flags) for section in shape.sections) > 30
    assert not long or len(known) + len(placed) >= 6
    # A task lacks what another one has; a command that stands alone lists its own options alone.
    assert name.split()[0] in ("train", "compare", "tune") or known == list(command.common)


def test_alone_it_says_in_a_few_lines_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert text.count("\n") <= 16 and max(map(len, text.splitlines())) <= 80
    positions = [text.index(f"\n  {purpose} ") for purpose in PURPOSES]
    assert positions == sorted(positions)
    assert "train lm | price" in text


def test_every_command_stands_under_one_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    for purpose, what in PURPOSES.items():
        assert f"\n{purpose}: {what}\n" in text
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for name in command_names():
        assert text.count(f"\n  {name} ") == 1


def test_a_group_a_block_and_a_word_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    group = shown(capsys, "train", "lm", "--help", "moe")
    assert "--moe.n_experts" in group and "--train.steps" not in group
    assert shown(capsys, "train", "lm", "--help=moe") == group == shown(capsys, "help", "train", "lm", "moe")
    block = shown(capsys, "train", "lm", "--help", "vft")
    assert "--vft.rank" in block
    alone = shown(capsys, "train", "lm", "--help", "tva")
    assert "--vft.v_rank" in alone and "--vft.stabilizer" not in alone and "[tva]" not in alone
    word = shown(capsys, "train", "lm", "--help", "batch-size")
    assert "--train.batch_size" in word and "--train.steps" not in word
    told = error_of(capsys, "train", "lm", "--help", "trian")
    assert told == "--help trian: `blockyard train lm` has no such group of options (did you mean 'train'?)"


def test_all_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "train", "lm", "--help", "all")
    shape = shape_of(load_command("train lm"))
    assert len(shape.flags) > 100
    assert not [flag.name for flag in shape.flags if f"{flag.name} " not in text.replace("\n", " ")]


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        (["--attn.impl", "tva"], ["--vft.v_rank"], ["--mla.kv_rank", "--vft.stabilizer", "--moe.k"]),
        (["--attn.impl=mla", "--ffn.impl=moe"], ["--mla.kv_rank", "--moe.k"], ["--vft.rank", "--spectral.gate"]),
        (
            ["--model.pattern", "spectral[window=4]*3/tva+vft"],
            ["--spectral.gate", "--vft.stabilizer"],
            ["--mla.kv_rank"],
        ),
    ],
    ids=["mixer", "both", "pattern"],
)
@pytest.mark.parametrize("asked", [[], ["all"]], ids=["short", "all"])
def test_chosen_blocks_alone_are_described(words, there, absent, asked, capsys) -> None:
    text = shown(capsys, "train", "lm", *words, "--help", *asked)
    assert all(f"\n  {flag} " in text for flag in there)
    assert not [flag for flag in absent if f"\n  {flag} " in text]


def test_an_expert_is_a_block_that_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    shape = shape_of(load_command("train lm"))
    chosen = chosen_blocks(shape, ["--ffn.impl", "moe", "--moe.expert=vft"])
    assert chosen is not None and {"ffn:moe", "ffn:vft"} <= chosen
    assert chosen_blocks(shape, ["--train.steps", "3"]) is None
    signal = shape_of(load_command("train signal"))
    assert "ffn:complex_swiglu" in (chosen_blocks(signal, ["--attn.impl", "complex"]) or ())


def test_a_block_that_cannot_be_chosen_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = error_of(capsys, "train", "lm", "--attn.impl", "tav", "--help")
    assert told == "--attn.impl: no 'tav' here (did you mean 'tva'?)"


@pytest.mark.parametrize("task", ["lm", "price", "classify", "recall"])
def test_complex_blocks_are_not_offered_where_the_stream_is_real(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "tune"):
        assert "complex_swiglu" not in shown(capsys, command, task, "--help", "all")
        assert "--complex." not in capsys.readouterr().out
    assert "complex_swiglu" in shown(capsys, "train", "signal", "--help", "ffn.impl")


def test_a_complex_block_in_a_real_stream_is_refused_as_before(tmp_path, capsys) -> None:
    (tmp_path / "t.txt").write_text("some text\n" * 300)
    words = ["--data.path", str(tmp_path / "t.txt"), "--attn.impl", "complex", "--out", str(tmp_path / "out")]
    told = error_of(capsys, "train", "lm", *words)
    assert "complex" in told and "real" in told


def test_help_after_the_first_call_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from blockyard.cli import main; main(['train', 'lm', '--help']);"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    environment = {**os.environ, "BLOCKYARD_CACHE": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        for _ in range(2)
    )
    assert first.returncode == 1 and second.returncode == 0, second.stderr
    assert first.stdout == second.stdout and "--attn.impl" in first.stdout


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """How often a command declared its arguments, with a cache of its own."""
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    # Other tests of this process register tasks of their own.
    monkeypatch.setattr(shape_cache, "has_more_tasks", lambda: False)
    monkeypatch.setattr(shape_cache, "has_additions", lambda: False)
    made = []
    command = load_command("list")
    declare = command.add_arguments
    monkeypatch.setitem(vars(command), "add_arguments", lambda parser: made.append(1) or declare(parser))
    return lambda: (shape_of(command), len(made))


def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / shape_cache.FOLDER / "list.json"


def test_a_shape_is_made_once(counted, tmp_path) -> None:
    first, again = counted(), counted()
    assert first[0] == again[0] and again[1] == 1
    assert Shape.from_dict(json.loads(json.dumps(first[0].to_dict()))) == first[0]


def test_a_changed_source_makes_it_anew(counted, monkeypatch) -> None:
    counted()
    monkeypatch.setattr(shape_cache, "_sources", lambda root: iter(["another.py 1 2"]))
    assert counted()[1] == 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"made_from": "MADE", "shape": {"sections": [{"name": 1}]}}'])
def test_a_damaged_cache_is_made_anew(counted, tmp_path, content) -> None:
    right = counted()[0]
    kept(tmp_path).write_text(content.replace("MADE", fingerprint()))
    assert counted() == (right, 2)
    assert counted() == (right, 2)


def test_a_cache_that_cannot_be_written_costs_time_alone(counted, tmp_path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    assert counted()[0] == counted()[0]
    monkeypatch.delenv("BLOCKYARD_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert counted()[1] == 3


def test_added_blocks_are_never_kept(counted, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shape_cache, "has_additions", has_additions)
    with toys():
        assert counted()[1] + counted()[1] == 3
        assert not kept(tmp_path).exists()
        assert "--toy.vigour" in shown(capsys, "train", "lm", "--help", "toy")
    assert any(entry.name == "standard" for entry in entries("attn"))


def test_every_command_has_words_for_its_group_of_options() -> None:
    for name in command_names():
        sections = [section.name for section in shape_of(load_command(name)).sections]
        assert len(sections) == len(set(sections)) and all(section.isidentifier() for section in sections)


def test_help_behind_two_dashes_is_none() -> None:
    assert app.asks_help(["--help"]) and app.asks_help(["--help=attn"])
    assert not app.asks_help(["words", "--", "--help"])
    assert main(["completion", "words", "--", "train", "lm", "--hel"]) == 0


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel brings, as its build makes it, where torch may be missing."""
    folder = tmp_path_factory.mktemp("shipped")
    subprocess.run([sys.executable, str(ROOT / "hatch_build.py"), str(folder)], check=True)
    return folder


def test_the_wheel_brings_what_torch_gives(shipped: Path) -> None:
    assert sorted(file.name for file in shipped.iterdir()) == sorted(map(shape_cache.file_name, command_names()))
    # In a process of its own: what other tests registered in this one is in no wheel.
    asked = (
        "import json; from blockyard.cli.finding import command_names, load_command; "
        "from blockyard.cli.shape_cache import shape_of; "
        "print(json.dumps({name: shape_of(load_command(name)).to_dict() for name in command_names()}))"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    for name, wanted in json.loads(done.stdout).items():
        found = json.loads((shipped / shape_cache.file_name(name)).read_text(encoding="utf-8"))
        assert Shape.from_dict(found["shape"]) == Shape.from_dict(wanted), name


def test_the_first_help_takes_what_the_wheel_brought(counted, shipped, monkeypatch) -> None:
    monkeypatch.setattr(shape_cache, "SHIPPED", shipped)
    first, again = counted(), counted()
    assert first == again == (shape_of(load_command("list")), 0)


def test_what_a_wheel_brought_of_other_sources_is_never_shown(counted, shipped, monkeypatch) -> None:
    monkeypatch.setattr(shape_cache, "SHIPPED", shipped)
    monkeypatch.setattr(shape_cache, "checksum", lambda: "another")
    assert counted()[1] == 1


def test_the_checksum_follows_what_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_cache.blockyard, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a").mkdir()
    found = set()
    for content in ("x = 1\n", "x = 2\n"):
        (tmp_path / "a" / "b.py").write_text(content)
        found |= {shape_cache.checksum(), shape_cache.checksum()}
    (tmp_path / "a" / "b.py").rename(tmp_path / "a" / "c.py")
    assert len(found | {shape_cache.checksum()}) == 3
