"""Text classification: readers that name what is wrong, padding and chunks that change nothing, training to use."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.cli import main
from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.report import html, write
from blockyard.report import text as report_text
from blockyard.tasks.classify.config import LabelledConfig
from blockyard.tasks.classify.data import load_labelled, split
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier, pool
from blockyard.tasks.classify.reader import Row, read_rows, standard_library_rows
from blockyard.tasks.classify.task import macro_f1
from blockyard.tasks.run import load_run, train
from tests.fixtures.cli import error_of

ANIMALS = {"cat": ("meow", "purr"), "dog": ("woof", "bark"), "cow": ("moo", "munch")}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Sixty rows; the label follows from one word of the text."""
    path = tmp_path / "sounds.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sound", "animal"])
        for i in range(60):
            animal = list(ANIMALS)[i % 3]
            writer.writerow([f'it says "{ANIMALS[animal][i % 2]}", {i} times, {"and on " * (i % 5)}', animal])
    return path


def groups(path: Path, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "context": 32, "chunks": 2},
        "data": {"path": str(path), "text_field": "sound", "label_field": "animal", "val_fraction": 0.2},
        "train": {"steps": 80, "batch_size": 12, "compile": "off", "threads": 1, "progress": False, "device": "cpu"},
    }
    for group, options in changes.items():
        found[group] = {**found.get(group, {}), **options}
    return found


def last_row(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def read(path: Path, **options: Any) -> list[Row]:
    return read_rows(path, **{"format": "auto", "text_field": "text", "label_field": "label", **options})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "text,lable\nhello,x\n", "row 1 has no 'label' (did you mean 'lable'?); it has: 'text', 'lable'"),
        ("a.csv", "text,label\nhello,x\n ,y\n", "a.csv row 2: 'text' is empty; expected text"),
        ("a.csv", "text,label\nhello,\n", "a.csv row 1: 'label' is empty; every row needs a label"),
        ("a.csv", "text,label\nhello, world,x\n", "a.csv row 1 has 3 fields, the header has 2"),
        ("a.csv", "text,label\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv is empty; expected a header and rows"),
        ("a.csv", 'text,label\n"hello,x\n', "a.csv is not CSV"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1.5}\n', "a.jsonl line 1: 'label' is 1.5; a label is a word or a whole"),
        ("a.jsonl", '{"text": 7, "label": 1}\n', "a.jsonl line 1: 'text' is 7; expected text"),
        ("a.jsonl", "[1]\n", "a.jsonl line 1 is not a JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("a.") and len(value) < 8 else "",
)  # fmt: skip
def test_a_bad_row_is_told_with_file_and_row(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert told in str(error.value)


def test_a_file_that_is_no_text_or_is_missing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff\xfe,x\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read(tmp_path / "a.csv")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "b.csv")


def test_csv_tsv_and_jsonl_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufefftext,label\n"two, words",1\n')
    (tmp_path / "a.tsv").write_text("label\ttext\n1\ttwo, words\n")
    (tmp_path / "a.jsonl").write_text('{"text": "two, words", "label": 1}\n\n')
    found = [read(tmp_path / f"a.{suffix}") for suffix in ("csv", "tsv", "jsonl")]
    assert found == [[Row("two, words", "1")]] * 3


def test_one_label_alone_and_labels_never_trained_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n")
    (tmp_path / "two.csv").write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    (tmp_path / "new.csv").write_text("text,label\na,z\n")
    with pytest.raises(InputError, match="every row has the label 'x'"):
        load_labelled(LabelledConfig(str(tmp_path / "one.csv")), 8, 1)
    with pytest.raises(InputError, match="no training row has the label 'z'"):
        load_labelled(LabelledConfig(str(tmp_path / "two.csv"), str(tmp_path / "new.csv")), 8, 1)


def test_the_split_keeps_a_share_of_every_class_and_groups_together() -> None:
    rows = [Row(f"{label} {i}", label, f"{label}{i // 4}") for label in ("a", "b") for i in range(40)]
    train_rows, val_rows = split(rows, 0.2)
    assert sorted(map(str, train_rows + val_rows)) == sorted(map(str, rows))
    assert {label: sum(row.label == label for row in val_rows) for label in ("a", "b")} == {"a": 8, "b": 8}
    assert not {row.group for row in train_rows} & {row.group for row in val_rows}
    shuffled = split(rows[::-1], 0.2)[1]
    assert {row.group for row in shuffled} == {row.group for row in val_rows}


def test_the_default_data_are_packages_of_the_standard_library() -> None:
    rows = standard_library_rows()
    assert len({row.label for row in rows}) == 8
    assert all(row.group.startswith(str(row.label)) for row in rows[:50])


def test_an_epoch_goes_through_all_documents_once_and_batches_split_into_rows(sounds: Path) -> None:
    options = groups(sounds)["data"]
    data = load_labelled(LabelledConfig(**options), 32, 2)
    count = len(data.train_classes)
    seen = torch.cat([data.batch(0, step, count // 4)["targets"] for step in range(4)])
    assert sorted(seen.tolist()) == sorted(data.train_classes[data._order(0, 0)][: len(seen)].tolist())
    whole, part = data.batch(3, 7, 12), data.batch(3, 7, 12, slice(4, 8))
    assert torch.equal(whole["targets"][4:8], part["targets"])
    assert whole["padding_mask"].sum() == (data.batch(3, 7, 12)["padding_mask"]).sum()


def model(**options: Any) -> TextClassifier:
    torch.manual_seed(0)
    config = {"vocab_size": 64, "n_classes": 3, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 8}
    built = TextClassifier(EncoderConfig(**{**config, "zero_init_outputs": False, **options}))
    return built.double().eval()


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_padding_does_not_change_the_classes(pooling: str) -> None:
    classifier = model(pooling=pooling)
    ids = torch.randint(64, (2, 5), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = torch.arange(8).expand(2, 8) < 5
    assert torch.allclose(classifier(ids).logits, classifier(padded, padding_mask=mask).logits, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_document_in_chunks_is_the_mean_of_what_each_chunk_gives(pooling: str) -> None:
    classifier = model(pooling=pooling, chunks=3)
    ids = torch.randint(64, (2, 3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 3, 8, dtype=torch.bool)
    mask[1, 1, 4:] = mask[1, 2] = False
    found = classifier(ids, padding_mask=mask).logits
    for row in range(2):
        vectors, weights = [], []
        for chunk in range(3):
            kept = int(mask[row, chunk].sum())
            if kept:
                vectors.append(classifier._encode(ids[row, chunk, :kept][None], None)[0])
                weights.append(kept if pooling == "mean" else 1)
        mean = sum(v * w for v, w in zip(vectors, weights)) / sum(weights)
        assert torch.allclose(classifier.head(mean)[0], found[row], atol=1e-12)


def test_pooling_takes_complex_numbers_and_rows_that_keep_nothing() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.complex128)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert torch.allclose(pool(x, mask, "mean"), torch.stack([x[0, :2].mean(0), torch.zeros_like(x[0, 0])]))
    assert torch.allclose(pool(x, mask, "last"), torch.stack([x[0, 1], torch.zeros_like(x[0, 0])]))


def test_a_mixer_that_sees_only_the_past_needs_causal() -> None:
    with pytest.raises(InputError, match="pooling=cls with causal=True"):
        EncoderConfig(vocab_size=4, n_classes=2, causal=True, pooling="cls")
    assert model(causal=True, pooling="last")(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3)


def test_the_cost_formula_counts_parameters_and_products() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    classifier = model(pooling="cls").float()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        classifier(torch.zeros(1, 8, dtype=torch.long))
    cost = classifier.cost(classifier.config.length)
    assert cost.parameters == sum(p.numel() for p in classifier.parameters())
    assert cost.flops == counter.get_total_flops()


def test_macro_f1_is_the_mean_over_classes_that_occur() -> None:
    confusion = torch.tensor([[8, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert macro_f1(confusion) == pytest.approx((16 / 19 + 2 / 5) / 2)


def test_a_classifier_learns_resumes_and_classifies_a_file(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(groups(sounds), tmp_path / "run", task="classify")
    row = last_row(out)
    assert row["val_accuracy"] > 0.9 and row["val_macro_f1"] > 0.9
    assert load_run(out).assets.labels == ("cat", "cow", "dog")
    (tmp_path / "new.jsonl").write_text('{"sound": "it says \\"moo\\", 3 times"}\n{"sound": "it says \\"woof\\", 9"}\n')
    assert main(["classify", str(out), str(tmp_path / "new.jsonl"), "--format", "csv", "--top", "3"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["row"], row["class_1"]) for row in rows] == [("1", "cow"), ("2", "dog")]
    assert sum(float(rows[0][f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-3)
    assert main(["classify", str(out), str(tmp_path / "new.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "likeliest: cow 50.0 %, dog 50.0 %"
    assert main(["classify", str(out), str(sounds), "--format", "csv", "--out", str(tmp_path / "classes.csv")]) == 0
    assert "of 60 labelled rows" in capsys.readouterr().err
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 61


def test_a_run_cut_short_ends_with_the_same_numbers(tmp_path: Path, sounds: Path) -> None:
    from blockyard.tasks.run import make_task
    from blockyard.tasks.settings import as_groups, resolve
    from blockyard.training.trainer import Trainer

    options = groups(sounds, train={"steps": 8, "save_every": 2, "log_every": 1}, model={"dropout": 0.2})
    whole = train(options, tmp_path / "whole", task="classify")
    run = resolve(options, "classify")
    trainer = Trainer(make_task(run), run.train, tmp_path / "cut", resolved=as_groups(run))
    trainer.advance(5)
    trainer.close()
    train(options, tmp_path / "cut", resume=True, task="classify")
    first, second = (
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()] for out in (whole, tmp_path / "cut")
    )
    assert first == second


def test_a_language_model_does_not_classify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("words and words " * 50)
    options = {
        "data": {"path": str(tmp_path / "text.txt"), "cache_dir": str(tmp_path)},
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 1, "context": 8},
        "train": {"steps": 1, "batch_size": 2, "compile": "off", "progress": False, "eval_batches": 1},
    }
    out = train(options, tmp_path / "run")
    assert error_of(capsys, "classify", str(out), "x.csv") == "a run of `train lm` does not classify"
    assert "which run and which file" in error_of(capsys, "classify", str(out))


def test_classifiers_are_compared_with_their_confusions(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    shared = groups(sounds)
    shared["train"] = {key: value for key, value in shared["train"].items() if key not in ("steps", "progress")}
    config = CompareConfig("standard,glu", budget_value=9000, seeds=1, evaluations=2, measure_memory=False)
    found = compare("classify", config, shared, tmp_path / "out", show=False)
    for choice in found["choices"]:
        figures = choice["runs"][0]["figures"]
        assert figures["labels"] == ["cat", "cow", "dog"]
        assert sum(map(sum, figures["confusion"])) == found["provenance"]["data"]["val_rows"]
    assert "Which classes are found" in (tmp_path / "out" / "report.html").read_text()
