"""docs/replication/README.md says what the kept runs say."""

import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "replication"


def test_what_the_script_prints_of_the_kept_runs_is_what_the_text_says():
    text = " ".join((FOLDER / "README.md").read_text().replace("*", "").split())
    numbers = list(runpy.run_path(str(FOLDER / "text_numbers.py"))["text_numbers"]())
    missing = [f"{what}: {number}" for what, number in numbers if number not in text]
    assert not missing
    assert len(numbers) > 50
