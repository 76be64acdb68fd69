import time

import pytest

from data.readers import fuzz


def test_two_hundred_damaged_inputs_give_faults_and_lose_nothing_else(tmp_path):
    reasons = {
        reason.partition(":")[0] for mutant in fuzz.mutants(0, 200) for reason in fuzz.check(mutant, tmp_path)
    }
    assert {"broken tar", "broken row group", "broken file", "not JSON", "damaged image", "not an image"} <= reasons


def test_inputs_are_whole_before_they_are_damaged(tmp_path):
    for valid in fuzz.valid_inputs():
        whole = fuzz.Mutant(0, "none", valid, valid.data)
        assert fuzz.check(whole, tmp_path) == []
        assert len(fuzz.intact(whole)) == sum(len(found) for _, _, found in valid.units)


def test_mutants_are_a_function_of_seed_and_number():
    assert list(fuzz.mutants(3, 20)) == list(fuzz.mutants(3, 20))
    assert list(fuzz.mutants(3, 20)) != list(fuzz.mutants(4, 20))


def test_the_check_notices_a_lost_record_a_hang_and_an_open_file(tmp_path, monkeypatch):
    lines = fuzz.json_lines()
    cut = fuzz.Mutant(0, "none", lines, lines.data)
    kept = []
    monkeypatch.setattr(fuzz, "outcome", lambda path: (kept.append(path.open()), []))
    with pytest.raises(AssertionError, match="left open"):
        fuzz.check(cut, tmp_path)
    kept.pop().close()
    monkeypatch.setattr(fuzz, "outcome", lambda path: ([], []))
    with pytest.raises(AssertionError, match="undamaged records are lost"):
        fuzz.check(cut, tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    monkeypatch.setattr(fuzz, "outcome", lambda path: time.sleep(9))
    with pytest.raises(fuzz.Hang):
        fuzz.check(cut, tmp_path)
