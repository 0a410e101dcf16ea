"""What is told keeps its brackets: a path or a reason is no markup."""

import pytest

from pipelines.console import messages, results, table

ODD = "own.py: no [a] in /data/[old]/x [/x] :x:"


def test_brackets_reach_the_reader(capsys: pytest.CaptureFixture[str]) -> None:
    messages().print(ODD, soft_wrap=True)
    results().print(ODD, soft_wrap=True)
    results().print(table(ODD, ("name",), [(ODD,)]))
    told = capsys.readouterr()
    assert told.err == f"{ODD}\n"
    assert told.out.count(ODD) == 3
