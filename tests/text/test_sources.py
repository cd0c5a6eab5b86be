"""Data as other tools leave it: datasets' folders, patterns of files, Arrow tables."""

from __future__ import annotations

import json

import pytest

from blockyard.errors import InputError
from blockyard.tasks.classify.reader import read_rows
from blockyard.text.config import TextDataConfig
from blockyard.text.load import load_text
from blockyard.text.readers import read_path
from blockyard.text.understanding import understand_text
from tests.text.test_readers import documents, refused, write_parquet

pyarrow = pytest.importorskip("pyarrow")


def write_arrow(path, columns, *, kind="stream", metadata=None) -> None:
    """Write a table as datasets does (a stream), or as a file with its table of contents."""
    table = pyarrow.table(columns)
    table = table.replace_schema_metadata(metadata)
    make = {"stream": pyarrow.ipc.new_stream, "file": pyarrow.ipc.new_file}[kind]
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def save_to_disk(folder, *shards, **state) -> None:
    """Write a folder as `Dataset.save_to_disk` does, one list of texts a shard."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, texts in zip(names, shards):
        write_arrow(folder / name, {"text": texts, "id": list(range(len(texts)))})
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], **state}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string"}}}))


def test_a_saved_dataset_is_read_row_by_row_and_not_the_json_that_describes_it(tmp_path):
    save_to_disk(tmp_path / "ds", ["one", "zwei — 字", "", "drei"], ["four"])
    assert documents(read_path(tmp_path / "ds")) == ["one", "zwei — 字", "drei", "four"]
    found = understand_text(TextDataConfig(path=str(tmp_path / "ds")))
    assert (found.formats, found.documents, found.left_out) == ({"arrow": 2}, 4, {})
    assert "note: 1 empty document is left out" in "\n".join(found.lines())


def test_shards_are_read_in_the_dataset_s_order_whatever_their_names(tmp_path):
    save_to_disk(tmp_path / "ds", ["a"], ["b"])
    state = json.loads((tmp_path / "ds" / "state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "ds" / "state.json").write_text(json.dumps(state))
    (tmp_path / "notes.txt").write_text("beside it")
    assert documents(read_path(tmp_path)) == ["b", "a", "beside it"]


def test_a_dataset_of_several_splits_asks_which(tmp_path):
    for split in ("train", "test"):
        save_to_disk(tmp_path / "ds" / split, [split])
    (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    refused(tmp_path / "ds", r"several splits; name the one to read: .*ds/train, .*ds/test")
    assert documents(read_path(tmp_path / "ds" / "train")) == ["train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_indices_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
        ({"_data_files": [{"filename": "../x.arrow"}]}, "none of this folder"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "lacks gone.arrow"),
        ({"_data_files": None}, "cache of datasets"),
    ],
    ids=["indices", "outside", "missing", "cache"],
)
def test_a_dataset_that_is_not_what_it_says_is_refused(tmp_path, change, message):
    save_to_disk(tmp_path / "ds", ["a"], **change)
    refused(tmp_path / "ds", message)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_an_arrow_file_is_read_alone_by_its_column(tmp_path, kind):
    texts = [f"text {i}" for i in range(5)]
    write_arrow(tmp_path / "a.arrow", {"body": texts}, kind=kind)
    assert documents(read_path(tmp_path / "a.arrow", text_field="body")) == texts
    refused(tmp_path / "a.arrow", r"no column 'text' \(it has: body\)")
    (tmp_path / "b.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-120])
    refused(tmp_path / "b.arrow", "not a readable arrow file", text_field="body")


def test_an_arrow_value_that_is_not_text_is_refused_with_its_row(tmp_path):
    write_arrow(tmp_path / "a.arrow", {"text": ["x", "y", None]})
    refused(tmp_path / "a.arrow", "row 2 column 'text' is NoneType")


def test_a_pattern_reads_the_files_it_matches_by_name_and_no_others(tmp_path):
    for i in (2, 0, 1):
        write_parquet(tmp_path / f"part-{i}.parquet", {"text": [f"p{i}"]})
    (tmp_path / "README.md").write_text("not asked for")
    (tmp_path / "deep").mkdir()
    write_parquet(tmp_path / "deep" / "part-3.parquet", {"text": ["p3"]})
    assert documents(read_path(tmp_path / "*.parquet")) == ["p0", "p1", "p2"]
    assert documents(read_path(tmp_path / "**" / "*.parquet")) == ["p3", "p0", "p1", "p2"]
    found = understand_text(TextDataConfig(path=str(tmp_path / "part-[01].parquet")))
    assert (found.formats, found.documents) == ({"parquet": 2}, 2)


def test_a_pattern_that_matches_nothing_or_a_folder_is_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="matches no file"):
        list(read_path(tmp_path / "*.txt"))
    with pytest.raises(InputError, match="matches the folder"):
        list(read_path(tmp_path / "*"))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("mine")
    assert documents(read_path(tmp_path / "a[1].txt")) == ["mine"]


def test_a_format_given_with_a_pattern_is_that_of_each_file(tmp_path):
    (tmp_path / "a.log").write_text('{"text": "inside"}\n')
    assert documents(read_path(tmp_path / "*.log", format="jsonl")) == ["inside"]


def test_text_behind_the_limit_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    options = {"path": str(tmp_path / "a.txt"), "cache_dir": str(tmp_path / "c"), "val_fraction": 0.5}
    told = "the text goes on behind data.max_bytes=60; the rest is left out"
    assert load_text(TextDataConfig(**options, max_bytes=60), 4).notes == (told,)
    assert load_text(TextDataConfig(**options, max_bytes=100), 4).notes == ()


CLASSES = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}


def labelled(folder, classes, texts):
    folder.mkdir()
    meta = {"huggingface": json.dumps(CLASSES)}
    write_arrow(folder / "data-00000-of-00001.arrow", {"text": texts, "label": classes}, metadata=meta)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')


def read(path, **options):
    return read_rows(path, format="auto", text_field="text", label_field="label", **options)


def test_labelled_rows_of_a_saved_dataset_have_the_names_of_their_classes(tmp_path):
    labelled(tmp_path / "ds", [1, 0], ["fine", "awful"])
    assert [(row.text, row.label) for row in read(tmp_path / "ds")] == [("fine", "good"), ("awful", "bad")]


def test_labelled_rows_of_parquet_are_read_by_column(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["x", "y"], "label": [3, 4]})
    assert [row.label for row in read(tmp_path / "a.parquet")] == ["3", "4"]
    write_parquet(tmp_path / "b.parquet", {"text": ["x"]})
    assert [row.label for row in read(tmp_path / "b.parquet", labels="optional")] == [None]
    with pytest.raises(InputError, match="has no column 'label'"):
        read(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("number", "message"), [(-1, "is empty; every row needs a label"), (7, "class 7, but names 2")]
)
def test_a_class_that_has_no_name_is_refused(tmp_path, number, message):
    labelled(tmp_path / "ds", [0, number], ["fine", "awful"])
    with pytest.raises(InputError, match=message):
        read(tmp_path / "ds")
