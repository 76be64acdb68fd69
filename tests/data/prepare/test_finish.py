import json

import numpy as np

import helpers
from transfusion_jax.data.prepare import finish
from transfusion_jax.data.prepare.shard import columns_file


def test_a_duplicate_of_another_shard_is_told_of_by_its_key(tmp_path):
    for name, texts in {"a": ["one", "two"], "b": ["three", "two", "one"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    helpers.prepare(tmp_path / "out", [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    lines = list(map(json.loads, (tmp_path / "out/quarantine.jsonl").read_text().splitlines()))
    assert [(line["source"][-7:], line["key"]) for line in lines] == [("b.jsonl", "@18"), ("b.jsonl", "@34")]
    path = columns_file(tmp_path / "out", 1)
    held = dict(np.load(path))
    del held["names"]
    np.savez(path, **held)  # as older versions wrote it
    assert finish._names(tmp_path / "out", 1, held["record"]) == ["record 0", "record 1", "record 2"]
