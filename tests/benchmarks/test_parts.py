import json

import harness
import parts


def test_the_parts_are_timed_beside_the_step_and_add_up_to_the_floor(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "PEAK_SIZES", (64,))
    path = tmp_path / "parts.json"
    shape = ["--width", "64", "--layers", "1", "--rows", "1", "--context", "384", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["parts", *shape, "--json", str(path)])
    parts.main()
    result = json.loads(path.read_text())
    medians = {name: timing["median"] for name, timing in result["timings"].items()}
    assert list(medians) == ["the step", "products", "attention", "text head", "update"]
    assert result["floor"] == sum(list(medians.values())[1:])
    assert "all parts: the floor" in capsys.readouterr().out
