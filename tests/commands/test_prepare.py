import json

import fsspec
import numpy as np
import pytest

from data.readers.samples import photographs, write_images, write_tar
from emulator import bucket
from transfusion_jax.cli import main
from transfusion_jax.data.prepare import place_among_hosts
from transfusion_jax.data.store.dataset import Prepared, PreparedDocuments

NATIVE = ("--aspect", "native")

pytestmark = pytest.mark.usefixtures("ready_workers")


def test_a_folder_of_photographs_is_prepared_and_said_to_be(tmp_path, capsys):
    assert main(["prepare", photos(tmp_path), *output(tmp_path), "--image-size", "16", "--held-out", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 shards to read" in said
    assert "10 documents" in said
    assert f"with --config.data.sources.out.path={tmp_path / 'out'}" in said
    assert main(["prepare", photos(tmp_path), *output(tmp_path), "--image-size", "16", "--held-out", "0.2"]) == 0
    assert main(["prepare", photos(tmp_path), *output(tmp_path), "--image-size", "8", "--held-out", "0.2"]) == 2
    assert "--image-size: 16 -> 8" in capsys.readouterr().err


def test_photographs_keep_their_proportions_if_asked(tmp_path, capsys):
    command = ["prepare", photos(tmp_path), *output(tmp_path), *NATIVE, "--held-out", "0.2", "--workers", "1"]
    command += ["--encode", "dct-f4c12"]
    assert main([*command, "--area", "40x40", "--multiple", "8"]) == 0
    said = capsys.readouterr().out
    assert "  pixels     1 shapes, sides to 48, areas to 1,536\n" in said
    assert "  dct-f4c12  1 shapes, sides to 12, areas to 96\n" in said
    assert Prepared.open(tmp_path / "out").shapes("pixels") == {(32, 48): 10}
    assert main([*command, "--area", "32x32", "--multiple", "8"]) == 2
    assert "--area: 1600 -> 1024" in capsys.readouterr().err
    assert main(["prepare", photos(tmp_path), *output(tmp_path)]) == 2
    assert '--aspect: "native" -> "square"' in capsys.readouterr().err
    assert main([*command, "--area", "40x40", "--multiple", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shapes"] == {"pixels": [[32, 48, 10]], "dct-f4c12": [[8, 12, 10]]}


def test_what_is_not_used_is_counted_with_its_reason(tmp_path, capsys):
    folder = tmp_path / "photos"
    photos(tmp_path)
    (folder / "0003.png").write_bytes(b"")
    (folder / "0004.txt").write_text("\n")
    assert main(["prepare", str(folder), *output(tmp_path), "--json", "--image-size", "16"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(result["quarantine"].values()) == 2
    assert sum(split["documents"] for split in result["splits"].values()) == 8
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {line["key"].split(".")[0].partition("#")[0] for line in lines} == {"0003", "0004"}


def test_a_dry_run_shows_the_first_records_and_writes_nothing(tmp_path, capsys):
    assert main(["prepare", photos(tmp_path), *output(tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 shard(s) of format folder" in said
    assert said.count("text 'photograph") == 8
    assert main(["prepare", photos(tmp_path), *output(tmp_path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["out", "in/out", ".", "link/out"])
def test_an_output_within_an_input_is_refused_before_it_is_read(place, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    write_images(folder)
    where = tmp_path / place if place.startswith("link") else folder / place
    assert main(["prepare", str(folder), "--output", str(where)]) == 2
    said = capsys.readouterr().err
    assert f"lies in the input {folder}, whose files are read: choose a folder beside it" in said
    assert not (folder / "out").exists()


def test_hosts_each_take_their_part_and_the_last_finishes(tmp_path, capsys):
    command = ["prepare", "shapes:30", *output(tmp_path), "--image-size", "16", "--shard-size", "8"]
    assert main([*command, "--shard", "1/2", "--workers", "1"]) == 0
    assert "this host's part is done" in capsys.readouterr().out
    assert not (tmp_path / "out/data.json").exists()
    assert main([*command, "--shard", "0/2", "--workers", "1"]) == 0
    splits = Prepared.open(tmp_path / "out").manifest["splits"]
    assert sum(split["documents"] for split in splits.values()) == 30


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "4"}, (0, 4)),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, (1, 4)),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_a_scheduler_says_which_host_this_is(variables, place, monkeypatch):
    for name in ("SLURM_PROCID", "JOB_COMPLETION_INDEX", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place_among_hosts() == place


def test_a_limit_takes_the_first_records_of_each_shard(tmp_path):
    command = ["prepare", "shapes:30", *output(tmp_path), "--image-size", "16", "--shard-size", "10"]
    assert main([*command, "--limit", "3", "--held-out", "0"]) == 0
    assert Prepared.open(tmp_path / "out").manifest["splits"]["train"]["documents"] == 9


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_bytes(tmp_path):
    command = ["prepare", "shapes:40", "--image-size", "16", "--shard-size", "10"]
    for runner in ("local", "ray"):
        assert main([*command, "--output", str(tmp_path / runner), "--runner", runner]) == 0
    for path in sorted(path for path in (tmp_path / "local").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "ray" / path.relative_to(tmp_path / "local")).read_bytes()


def test_what_cannot_be_prepared_is_one_sentence(tmp_path, capsys):
    for arguments, message in [
        (["nothing/*.tar"], "nothing matches nothing/*.tar"),
        (["shapes:5", "--held-out", "1.5"], "--held-out must lie between 0 and 1"),
        (["shapes:5", "--image-size", "0"], "--image-size: 0 must be at least 1"),
        (["shapes:5", "--shard", "2/2"], "--shard 2/2 must be I/N"),
        (["shapes:5", "--workers", "-1"], "--workers: -1 must be at least 1"),
        (["shapes:5", "--runner", "ray", "--workers", "2"], "--workers goes with --runner local"),
        (["shapes:5", "--tokenizer", "none.model"], "tokenizer none.model: there is no such file"),
        (["shapes:5", "--text-column", "x"], "--text-column means nothing to shapes"),
        (
            ["shapes:5", "--area", "64x64"],
            "--area goes with --aspect native, and this is --aspect square: change one",
        ),
        (["shapes:5", "--multiple", "8"], "--multiple goes with --aspect native"),
        (["shapes:5", "--enlarge"], "--enlarge goes with --aspect native"),
        (["shapes:5", "--max-aspect", "2"], "--max-aspect goes with --aspect native"),
        (["shapes:5", *NATIVE, "--image-size", "64"], "--image-size goes with --aspect square"),
        (["shapes:5", "--aspect", "round"], "--aspect: invalid choice: 'round'"),
        (
            ["shapes:5", *NATIVE, "--area", "64"],
            "--area 64 must be HxW, such as 256x256, and hold 268,435,456 pixels at most",
        ),
        (["shapes:5", *NATIVE, "--area", "0x64"], "--area 0x64 must be HxW"),
        (["shapes:5", *NATIVE, "--area", "20000x20000"], "--area 20000x20000 must be HxW"),
        (["shapes:5", *NATIVE, "--area", "8x16"], "--area holds 128 pixels, and one --multiple squared has 256"),
        (["shapes:5", *NATIVE, "--multiple", "0"], "--multiple: 0 must be at least 1"),
        (["shapes:5", *NATIVE, "--max-aspect", "0"], "--max-aspect must be at least 1, not 0.0"),
        (["shapes:5", *NATIVE, "--multiple", "4", "--encode", "dct-f8c8"], "change --multiple 4 or --channels 3"),
        (["shapes:5", "--image-size", "20", "--encode", "dct-f8c8"], "change --image-size 20 or --channels 3"),
    ]:
        assert main(["prepare", *arguments, *output(tmp_path)]) == 2, arguments
        assert message in capsys.readouterr().err
    assert main(["prepare", "shapes:5", "--output", "s3://bucket/data"]) == 2
    assert "s3:// cannot be used here; give a local path or gs://" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_where_no_document_is_found_the_command_says_so_and_fails(more, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    command = ["prepare", str(tmp_path / "a.jsonl"), *output(tmp_path), *more]
    for _ in range(2):
        assert main(command) == 2
        said = capsys.readouterr()
        assert f"no document was found: {tmp_path / 'out/quarantine.jsonl'}" in said.err
        assert "train on it" not in said.out
    assert json.loads((tmp_path / "out/quarantine.jsonl").read_text())["reason"] == "empty text"


def test_paths_out_of_the_folder_are_read_where_the_job_allows_it(tmp_path, capsys):
    folder = tmp_path / "in"
    photos(tmp_path)
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"image": "../photos/0001.png", "caption": "c"}\n{"text": "x"}\n')
    command = ["prepare", str(folder / "a.jsonl"), "--image-size", "16", "--held-out", "0"]
    assert main([*command, *output(tmp_path)]) == 0
    assert Prepared.open(tmp_path / "out").manifest["splits"]["train"]["images"] == 0
    [line] = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert "--allow-paths reads it" in line
    assert "allow_paths" not in (tmp_path / "out/job.json").read_text()  # as folders of earlier versions have it
    assert main([*command, *output(tmp_path), "--allow-paths"]) == 2
    assert "--allow-paths: false -> true" in capsys.readouterr().err
    assert main([*command, "--allow-paths", "--output", str(tmp_path / "allowed")]) == 0
    assert Prepared.open(tmp_path / "allowed").manifest["splits"]["train"]["images"] == 1
    assert json.loads((tmp_path / "allowed/job.json").read_text())["reading"]["allow_paths"] is True
    assert main([*command, "--output", str(tmp_path / "allowed")]) == 2
    assert "--allow-paths: true -> false" in capsys.readouterr().err


def test_inputs_of_several_formats_are_prepared_together(tmp_path, capsys):
    write_tar(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "alone"}\n')
    inputs = [str(tmp_path / "photographs.tar"), str(tmp_path / "a.jsonl"), "shapes:3"]
    command = ["prepare", *inputs, *output(tmp_path), "--image-size", "16", "--held-out", "0"]
    assert main([*command, "--dry-run"]) == 0
    assert "3 shard(s) of format jsonl, shapes, webdataset" in capsys.readouterr().out
    assert main(command) == 0
    assert Prepared.open(tmp_path / "out").manifest["splits"]["train"]["documents"] == 14


def photos(tmp_path):
    folder = tmp_path / "photos"
    write_images(folder)
    for number, name in enumerate(photographs()):
        (folder / name).with_suffix(".txt").write_text(f"photograph {number}\n")
    return str(folder)


def output(tmp_path):
    return ["--output", str(tmp_path / "out")]


def test_tars_in_a_bucket_are_prepared(tmp_path, monkeypatch):
    monkeypatch.undo()  # new workers: ready ones do not see the bucket's address
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars")
    with bucket("data") as url:
        fsspec.filesystem("gs").pipe("data/tars/a.tar", next((tmp_path / "tars").iterdir()).read_bytes())
        inputs = {"bucket": f"{url}/tars/*.tar", "local": str(tmp_path / "tars/*.tar")}
        for name, path in inputs.items():
            assert main(["prepare", path, "--output", str(tmp_path / name), "--image-size", "16"]) == 0
        assert main(["prepare", f"{url}/none/*.tar", "--output", str(tmp_path / "none")]) == 2
    found = [PreparedDocuments(Prepared.open(tmp_path / name), "train", "pixels", None) for name in inputs]
    count = Prepared.open(tmp_path / "local").manifest["splits"]["train"]["documents"]
    assert count > 0
    for number in range(count):  # records are sealed with the input that they come from
        remote, local = (documents.record(number) for documents in found)
        assert [s.loss for s in remote.segments] == [s.loss for s in local.segments]
        np.testing.assert_equal([s.tokens for s in remote.segments], [s.tokens for s in local.segments])
        np.testing.assert_array_equal(*(np.stack(documents.latents(number)) for documents in found))


def test_a_tokenizer_is_trained_on_the_inputs_the_same_each_time(tmp_path, capsys):
    for name in ("a", "b", "a"):  # the third goes on in the folder of the first
        command = ["prepare", "shapes:200", "--output", str(tmp_path / name), "--image-size", "8"]
        assert main([*command, "--tokenizer", "bpe:300"]) == 0
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    prepared = Prepared.open(tmp_path / "a")
    assert prepared.tokenizer.size == 300
    text = "Two large red circles.\n"
    assert len(prepared.tokenizer.encode(text)) < 0.7 * len(text)
    assert prepared.tokenizer.decode(prepared.tokenizer.encode(text)) == text
    assert main(["prepare", "shapes:9", "--output", str(tmp_path / "c"), "--tokenizer", "bpe:many"]) == 2
    assert "say how many entries, such as bpe:4096" in capsys.readouterr().err
    for entries in ("256", "1048577", "2147483647"):
        assert main(["prepare", "shapes:9", "--output", str(tmp_path / "c"), "--tokenizer", f"bpe:{entries}"]) == 2
        assert f"257 to 1,048,576 entries, not {entries}" in capsys.readouterr().err


def test_a_tokenizer_that_the_text_does_not_fill_is_said_to_be_smaller(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "one two one two one two"}\n')
    command = ["prepare", str(tmp_path / "a.jsonl"), *output(tmp_path), "--dry-run", "--tokenizer"]
    assert main([*command, "bpe:512"]) == 0
    said = capsys.readouterr().out
    size = int(said.partition("the text gave ")[2].split()[0])
    assert 256 < size < 512
    assert f"--tokenizer bpe:512: the text gave {size} of 512 entries" in said
    assert f"a config for this data needs --config.model.vocabulary={size}\n" in said
    assert main([*command, f"bpe:{size}"]) == 0
    assert "the text gave" not in capsys.readouterr().out


def test_too_few_documents_to_evaluate_on_are_said_with_the_share_that_keeps_some_tens(tmp_path, capsys):
    command = ["prepare", "shapes:150", "--image-size", "8", "--workers", "1", "--output"]
    assert main([*command, str(tmp_path / "a"), "--held-out", "0.02"]) == 0
    assert "documents are few to evaluate on: --held-out 0.14 would keep about 20" in capsys.readouterr().out
    for name, share in (("b", "0.3"), ("c", "0")):
        assert main([*command, str(tmp_path / name), "--held-out", share]) == 0
        assert "few to evaluate on" not in capsys.readouterr().out
    assert main([*command, str(tmp_path / "d"), "--held-out", "1e-9"]) == 0
    assert "0 documents are few to evaluate on" in capsys.readouterr().out
