"""A folder with its list is whole; whatever is taken from it is named."""

from __future__ import annotations

import pytest

from cli.checkpoints import last_checkpoint, what_is_wrong
from lightning_modules.checkpoint_folders import LIST, seal, what_is_missing


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoints/step=000002.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint/rank_0.pt").write_bytes(b"0" * 10)
    (folder / "checkpoint/rank_1.pt").write_bytes(b"1" * 11)
    seal(folder)
    return folder


def test_a_sealed_folder_is_whole(folder):
    assert what_is_missing(folder) is None
    assert what_is_wrong(folder) is None
    assert last_checkpoint(folder.parents[1]) == folder


def test_what_is_taken_away_is_named(folder):
    share = folder / "checkpoint/rank_1.pt"
    share.write_bytes(b"1" * 5)
    assert what_is_missing(folder) == "checkpoint/rank_1.pt has 5 bytes in place of 11"
    share.unlink()
    assert what_is_missing(folder) == "checkpoint/rank_1.pt is missing"
    (folder / LIST).write_text('{"checkpoint/rank')
    assert what_is_missing(folder) == "files.json is not complete"
    (folder / LIST).unlink()
    assert what_is_missing(folder) == "it has no files.json, which is written last"


def test_the_one_before_is_used(folder, capsys):
    older = folder.with_name("step=000001.ckpt")
    older.mkdir()
    seal(older)
    (folder / "checkpoint/rank_0.pt").unlink()
    assert last_checkpoint(folder.parents[1]) == older
    assert f"Passing over {folder}: checkpoint/rank_0.pt is missing." in capsys.readouterr().out
    (older / LIST).unlink()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        last_checkpoint(folder.parents[1])
