import re
from pathlib import Path

from drills.table import BEGIN, COLUMNS, END, markdown

HERE = Path(__file__).parent


def test_the_table_in_the_documentation_holds_every_drill():
    source = "".join((HERE / name).read_text() for name in ("test_drills.py", "test_many.py"))
    faults = re.findall(r'drill\(f?"(.*?)[",{]', source) + re.findall(r'^        \("(a .*?)"', source, re.MULTILINE)
    table = (HERE.parents[1] / "docs/reliability.md").read_text().partition(BEGIN)[2].partition(END)[0]
    assert len(faults) >= 30
    assert len(table.splitlines()) == 2 + len(faults)
    for fault in faults:
        assert f"| {fault}" in table


def test_a_table_is_markdown():
    assert markdown([("a", "b", "1", "yes")]).splitlines()[0] == "| " + " | ".join(COLUMNS) + " |"
    assert markdown([("a", "b", "1", "yes")]).splitlines()[2] == "| a | b | 1 | yes |"
