"""Bad inputs, each made from (seed, kind, number) alone: a command's words, and the folder it runs in."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import load, safe_open, save_file

from cluster.manifest import FIELDS, TEMPLATES
from pipelines.config import field_paths

BASE: dict[str, Any] = {
    "name": "run", "storage": "runs", "data": {"path": "d", "train_rows": 150, "test_rows": 60},
    "model": {"name": "mlp", "hidden": [8], "T": 2},
    "train": {"epochs": 1, "schedule": "constant", "batch_size": 64},
    "data_pruning": {"warmup_epochs": 0, "anneal_epochs": 0}, "cluster": {"engine": "local", "threads": 1},
    "weight_pruning": {"retrain_epochs": 0, "calibration_examples": 32, "measure_examples": 8},
}  # fmt: skip
LONG = (
    "cluster.",
    "train.epochs",
    "weight_pruning.retrain_epochs",
    "weight_pruning.rounds",
    "model.T",
    "model.hidden",
)
"""Fields that are only read: a good value of theirs would start Ray, or train for hours."""
MARKER = "UNPICKLED"
VALUES = [
    "", "null", "~nobody/x", "true", "no", "[]", "{}", "[[1], {a: [2]}]", "[1, x]", "{width: 64}",
    "{1: 2}", "-1",
    "1", "2", "0.5", ".nan", "nan", ".inf", "-.inf", "1e999", "1e-320", "1e6", str(2**31), str(2**63),
    "0", "1_000", str(10**18), "9" * 5000, "1:30", "0x10", "2026-13-45", "!!binary aGk=", "*a",
    f"!!python/object/apply:builtins.open [{MARKER}, w]", "!!int abc", "&a [*a]", "'a\0b'", '"\\0"',
    '"\\e[31m"', "=", "- a",
    "\u202e\ufeffé", "x" * 300, "x" * 70_000, "../..", "folder", "nowhere", "loop", "base.yaml", "d",
    "runs", "d/runs", "nosuch://x/y", "s3://", "file:///absent/x", "http://127.0.0.1:9/x", "os:getcwd", "a:b",
    "mlp", "lamp", "sadp", "full", "train", "cuda:99", "|\n  text", "#", "%", "@", "`", "{", "-rf", "--help",
    "--", "a,b", "a b", "[" * 3000,
]  # fmt: skip
COMMANDS = """train base.yaml --name n
run base.yaml --name n --data.reading shards
train base.yaml --name half --resume --train.epochs 2
prune runs/run --name n --sparsity 0.5
evaluate runs/run --split test
export runs/run --output out
report runs/run runs/other --output out.html
report runs/run
compare runs/run --criteria lamp --levels 0.5
score runs/run --output out.parquet
search --plot runs/run
data verify d
data show d --rows 4 --png out.png --seed 1
data ingest parquet --input d --T 2 --output out
data select d --ratio 0.5 --policy random --output out.parquet --seed 1 --alpha 0.1
data select d --ratio 0.5 --scores scores.parquet --output out.parquet --filtered out
data ingest imagefolder --input images --output out --size 8 --test-share 0.5 --workers 1
data ingest numpy --input arrays --output out --workers 1 --shard-rows 4 --on-bad skip
data ingest parquet --input d --output out --workers 1
submit --address http://127.0.0.1:9 --working-dir folder --env A=1 -- run base.yaml
cluster manifest slurm --set workers=1""".splitlines()
ON_RUNS = [command for command in COMMANDS if "runs/" in command or "half" in command]
DATA = ("data", "train base.yaml --name n", "run")
CONTRADICTIONS = """--weight-pruning.sparsity 0.5 --weight-pruning.synops 0.5
--data.val-share 0.1 --data.val-split test
--seeds 0|--seeds -1|--weight-pruning.rounds 3|--resume|--filtered out.parquet|--output d|--output runs/run
--cluster.engine local --cluster.workers 2|--weight-pruning.schedule cubic --weight-pruning.budget 1
--address auto
--data.train-split test|--data.val-share 1e-9|--output d/out""".replace("\n", "|").split("|")
TEXTS: list[Callable[[str, str], str]] = [  # of a config file, given a good one and a value
    lambda t, v: f"base: {v}\n{t}", lambda t, v: f"{t}name: b\n", lambda t, v: "a: " * 2000, lambda t, v: v,
    lambda t, v: "{a: " * 1500, lambda t, v: "a: &a [x]\nb: &b [*a, *a]\nname: *b\n", lambda t, v: t[:90],
    lambda t, v: t + "#" * 2**21, lambda t, v: f"{t}---\n{t}", lambda t, v: t.replace("  ", "\t"),
    lambda t, v: f"{t}<<: {{name: b}}\n", lambda t, v: f"{t}? [a, b]\n: 1\n",
    lambda t, v: f"{t}search: {v}\n", lambda t, v: f"version: {v}\n{t}", lambda t, v: f"{t}train: {v}\n",
    lambda t, v: f"{v}: {v}\n",
]  # fmt: skip
ARRAYS: dict[str, Callable[[int], pa.Array]] = {  # n rows of a column of a dataset
    "nan": lambda n: pa.array(np.where(np.arange(n) == 9, np.nan, 0)), "null": pa.nulls,
    "negative": lambda n: pa.array(np.full(n, -1)), "int8": lambda n: pa.array(np.zeros(n, np.int8)),
    "huge": lambda n: pa.array(np.full(n, 2**62)), "text": lambda n: pa.array(["x"] * n),
    "shuffled": lambda n: pa.array(np.random.default_rng(0).permutation(n)),
    "lists": lambda n: pa.array([[1.0] * (i % 3) for i in range(n)]), "bool": lambda n: pa.array([True] * n),
    "bytes": lambda n: pa.array([b"x"] * n), "nans": lambda n: pa.array([[np.nan, 1.0]] * n),
    "one null": lambda n: pa.array([None, *range(1, n)]), "pairs": lambda n: pa.array([[1.0, 0.0]] * n),
    "sparse": lambda n: pa.array(np.arange(n) * 1000), "date": lambda n: pa.nulls(n, pa.date32()),
    "uint64": lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    "structs": lambda n: pa.array([{"bytes": b"", "path": None}] * n),
    "dictionary": lambda n: pa.array(["a"] * n).dictionary_encode(),
}  # fmt: skip


@dataclass
class Case:
    """A command to run in its folder."""

    words: list[str]
    what: str
    """The mutation, under which what is accepted is listed."""


def make_base(folder: Path, main: Callable[[list[str]], int]) -> None:
    """All that the commands name, made with the product itself."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "manifest.yaml").write_text("name: x\nworkers: 2\ncommand: [run, my.yaml]\n")
    for made in ("data ingest digits --output d", "run base.yaml", "train base.yaml --name half"):
        assert main(made.split()) == 0
    assert main(["run", "base.yaml", "--name", "other", "--model.hidden", "12"]) == 0
    ids = pq.read_table(folder / "d" / "train-00000.parquet", columns=["id"])
    pq.write_table(ids.append_column("sadp", pa.array(np.arange(1.0, len(ids) + 1))), "scores.parquet")
    for name in ("folder", "arrays", "images/a", "images/b"):
        (folder / name).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(np.full((8, 8), i * 30, np.uint8)).save(folder / "images" / "ab"[i % 2] / f"{i}.png")
    np.savez(folder / "arrays" / "train.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 2)
    (folder / "nowhere").symlink_to("absent")
    (folder / "loop").symlink_to("loop")


def make(kind: str, number: int, seed: int, folder: Path) -> Case:
    """Case ``number`` of a kind; its folder, a copy of the base, is changed accordingly."""
    r = random.Random(f"{seed}:{kind}:{number}")
    return {"config": _config, "words": _words, "manifest": _manifest}.get(kind, _files)(r, folder, kind)


def _config(r: random.Random, folder: Path, _: str) -> Case:
    path, fields = folder / "c.yaml", []
    text = yaml.safe_dump(BASE | {"name": "n"})
    how = r.choice(["field"] * 12 + ["fields", "bytes", "text", "text", "text", "encoding"])
    what = how
    if how in ("field", "fields"):
        tree = json.loads(json.dumps(BASE | {"name": "n"}))
        fields = r.sample(field_paths(), 1 if how == "field" else 3)
        for field in fields:
            *above, leaf = field.split(".")
            node = tree
            for key in above:
                node = node.setdefault(key, {})
            node[_typo(r, leaf) if r.random() < 0.1 else leaf] = f"VALUE{field}"
        text = yaml.safe_dump(tree)
        for field in fields:
            text = text.replace(f"VALUE{field}", value := r.choice(VALUES))
            what = f"{field}: {value[:20]!r}"
    elif how == "text":
        at = r.randrange(len(TEXTS))
        text, what = TEXTS[at](text, value := r.choice(VALUES)), f"text {at}: {value[:20]!r}"
    raw = text.encode(r.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"]) if how == "encoding" else "utf-8")
    path.write_bytes(_flipped(r, raw) if how == "bytes" else raw)
    only_read = any(field.startswith(LONG) for field in fields) or r.random() < 0.3
    return Case([r.choice(["train", "run"]), "c.yaml", *["--print-config"] * only_read], what)


def _words(r: random.Random, folder: Path, _: str) -> Case:
    words, told = r.choice(COMMANDS).split(), []
    verb, trains = " ".join(words[:2]), words[0] in ("train", "run", "prune")
    for _ in range(r.choice([1, 1, 1, 2])):
        at, value = r.randrange(len(words)), r.choice(VALUES)
        option = r.choice([i for i, w in enumerate(words) if w.startswith("--")] or [at])
        how = r.choice(["typo", "drop", "twice", "value", "value", "junk", "field", "field", "both", "verb"])
        field = r.choice([f for f in field_paths() if trains or not f.startswith(LONG)])
        both = r.choice(CONTRADICTIONS)
        told.append({"value": words[option], "field": field, "both": both}.get(how, how))
        end = len(words)
        edits = {
            "typo": (option, option + 1, ["--" + _typo(r, words[option].removeprefix("--"))]),
            "value": (option, option + 2, [words[option], value]), "drop": (at, at + 1, []),
            "twice": (at, at, words[at : at + 2]), "junk": (at, at, [value]),
            "both": (end, end, both.split()),
            "field": (end, end, [f"--{field.replace('_', '-')}", value]),
            "verb": (0, 1, [r.choice([_typo(r, words[0]), words[0].upper(), "", "data", "-h"])]),
        }  # fmt: skip
        start, stop, new = edits[how]
        words[start:stop] = new
    named = [w.removeprefix("--").replace("-", "_") for w in words]
    if trains and any(name.startswith((*LONG, "address", "seeds")) for name in named):
        words.append("--print-config")
    return Case(words, f"{verb}: {', '.join(told)}")


def _manifest(r: random.Random, folder: Path, _: str) -> Case:
    words = ["cluster", "manifest", r.choice([*TEMPLATES] * 3 + VALUES[:9])]
    name, value = r.choice([*FIELDS, *FIELDS, "", "nam"]), r.choice(VALUES)
    what = f"{name}: {value[:20]!r}"
    if r.random() < 0.5:
        return Case([*words, "--set", f"{name}={value}"], f"--set {what}")
    (path := folder / "manifest.yaml").write_text(f"{name}: {value}\n")
    return Case([*words, "--config", "manifest.yaml"], damage(r, path, path) if r.random() < 0.2 else what)


def _files(r: random.Random, folder: Path, kind: str) -> Case:
    """A run's, or a dataset's, damaged."""
    words = r.choice(ON_RUNS if kind == "run" else [c for c in COMMANDS if c.startswith(DATA)]).split()
    roots = {"runs/run": "runs/run", "half": "runs/half", "images": "images", "arrays": "arrays"}
    root = folder / next((roots[w] for w in words if w in roots), "d")
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("report."))
    path = r.choice([*files, folder / "scores.parquet"] if "--scores" in words else files)
    if kind == "data" and root.name == "d" and r.random() < 0.6:
        (folder / "d" / "manifest.json").unlink()  # which tells the files' hashes
        path = folder / "d" / r.choice(["train-00000.parquet", "test-00000.parquet"])
    twin = folder / "runs" / "other" / path.relative_to(root) if kind == "run" else folder / "images/a/0.png"
    what = damage(r, path, twin if twin.is_file() else folder / "base.yaml")
    if (marker := path.parent / "progress.json").is_file() and marker != path and r.random() < 0.7:
        stored = json.loads(marker.read_text())  # as an earlier version wrote it, so that the damage is read
        marker.write_text(json.dumps(stored | {"sha256": {}, "files": {}}))
    return Case(words, f"{' '.join(words[:2])}: {path.relative_to(folder)}: {what}")


def damage(r: random.Random, path: Path, other: Path) -> str:
    """Do something bad to a file, or put ``other`` in its place; says what."""
    raw = path.read_bytes()
    kinds = {".json": ["json"] * 12, ".safetensors": ["tensor"] * 8, ".parquet": ["table"] * 20}
    hows = ["cut", "bits", "empty", "gone", "folder", "nowhere", "loop", "pickle", "other", "link"]
    how = r.choice(hows + kinds.get(path.suffix.removesuffix("l"), []))
    content = {
        "cut": raw[: len(raw) // 2],
        "bits": _flipped(r, raw),
        "empty": b"",
        "other": other.read_bytes(),
    }
    if how in (changed := {"json": _json, "tensor": _tensor, "table": _table}):
        return f"{how} {changed[how](r, path)}"
    path.unlink()
    if how in content:
        path.write_bytes(content[how])
    elif how == "folder":
        path.mkdir()
    elif how in ("nowhere", "loop", "link"):
        path.symlink_to({"nowhere": "absent", "loop": path.name, "link": other}[how])
    elif how == "pickle" and path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, np.array([_Evil()]), allow_pickle=True)
    elif how == "pickle":
        torch.save({"a": _Evil()}, path)
    return how


class _Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARKER, "w")


def _json(r: random.Random, path: Path) -> str:
    """One value, anywhere, changed or gone."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    tree = node = json.loads(path.read_text()) if lines is None else lines
    at: list[Any] = []
    while isinstance(node, dict | list) and node and (not at or r.random() < 0.7):
        above, key = node, r.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = above[key]
        at.append(key)
    above[key] = value = r.choice(
        [None, -1, 0, 10**18, 1e308, float("nan"), "../x", "", [], {}, True, {"a": 1}]
    )
    if gone := r.random() < 0.3:
        del above[key]
    path.write_text("\n".join(map(json.dumps, [tree] if lines is None else lines)) + "\n")
    return f"{'.'.join(map(str, at))} {'gone' if gone else repr(value)}"


def _tensor(r: random.Random, path: Path) -> str:
    """One tensor wrong, or the header."""
    with safe_open(path, "pt") as file:
        header = dict(file.metadata() or {})
    tensors = load(path.read_bytes())
    x = tensors[name := r.choice(list(tensors))]
    wrong = {
        "nan": x * float("nan"),
        "shape": x.flatten()[:-1].clone(),
        "int": x.long(),
        "double": x.double(),
    }
    wrong |= {"inf": x + float("inf"), "gone": None}
    how = r.choice([*wrong, "header", "header"])
    if how == "header" and header:
        (beside := path.with_name("header.json")).write_text(next(iter(header.values())))
        how = f"header {_json(r, beside)}"
        header = dict.fromkeys(header, beside.read_text())
        beside.unlink()
    tensors |= {name: wrong.get(how, x)}
    save_file({n: t for n, t in tensors.items() if t is not None}, path, metadata=header or None)
    return f"{name} {how}"


def _table(r: random.Random, path: Path) -> str:
    table = pq.read_table(path)
    column = r.choice(table.column_names)
    at = table.column_names.index(column)
    others: dict[str, Callable[[], pa.Table]] = {
        "gone": lambda: table.remove_column(at), "empty": lambda: table.slice(0, 0),
        "few": lambda: table.slice(0, 1), "twice": lambda: pa.concat_tables([table, table]),
        "upper": lambda: table.rename_columns([c.upper() for c in table.column_names]),
        "names": lambda: table.replace_schema_metadata({"class_names": r.choice(VALUES)}),
    }  # fmt: skip
    how = r.choice([*ARRAYS, *others])
    made = others[how]() if how in others else table.set_column(at, column, ARRAYS[how](table.num_rows))
    pq.write_table(made, path)
    return f"{column} {how}"


def _flipped(r: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(r.choice([1, 3, 30])):
        changed[r.randrange(len(changed))] ^= 1 << r.randrange(8)
    return bytes(changed)


def _typo(r: random.Random, word: str) -> str:
    at = r.randrange(max(len(word), 1))
    return word[:at] + r.choice(["", "x", word[at : at + 1] * 2]) + word[at + 1 :]
