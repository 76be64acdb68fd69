"""The table of drills: each test adds a row, and pytest prints the table at its end."""

from pathlib import Path

import pytest

COLUMNS = ("fault", "what happened", "steps lost", "losses equal")
BEGIN, END = "<!-- drills: begin -->\n", "<!-- drills: end -->\n"


@pytest.fixture
def drill(record_property):
    """Adds a row to the table."""

    def add(fault, happened, lost, equal):
        record_property("drill", (fault, happened, str(lost), equal))

    return add


def pytest_addoption(parser):
    parser.addoption("--drill-table", metavar="FILE", help="also put the table of drills into this Markdown file")


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    drills = [report for report in reports if getattr(report, "when", None) == "call" and report.passed]
    drills.sort(key=lambda report: report.location[:2])  # the file and the line of the test
    rows = [value for report in drills for name, value in report.user_properties if name == "drill"]
    if not rows:
        return
    table = markdown(rows)
    terminalreporter.write("\n" + table)
    path = config.getoption("--drill-table")
    if path and not exitstatus and not config.option.keyword:  # a table is whole, and every drill in it passed
        before, _, rest = Path(path).read_text().partition(BEGIN)
        Path(path).write_text(before + BEGIN + table + END + rest.partition(END)[2])


def markdown(rows):
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
