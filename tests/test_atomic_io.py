"""Files: whole or not there."""

import json
import os

import numpy as np
import pytest

from cobertes.atomic_io import read_json, replacing, write_json, write_text
from cobertes.cli.console import Console
from cobertes.errors import InputFileError, StorageError, did_you_mean


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]
    write_text(tmp_path / "a.txt", "nèw")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "nèw"


def test_processes_that_write_a_file_at_the_same_time_do_not_meet(tmp_path, monkeypatch):
    rename = os.replace

    def meanwhile(temporary, path):
        monkeypatch.setattr(os, "replace", rename)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            write_text(tmp_path / "a.txt", "theirs")
        rename(temporary, path)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_text(tmp_path / "a.txt", "ours")
    assert (tmp_path / "a.txt").read_text() == "ours"
    assert names(tmp_path) == ["a.txt"]


def test_folders_are_made_where_they_lack(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    data = {"a": [float("nan"), (1.5, np.float64("nan"))], "b": {"c": float("inf")}, "ç": -3}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, [1.5, None]], "b": {"c": None}, "ç": -3}
    assert read_json(tmp_path / "a.json")["ç"] == -3
    assert "ç" in text


def test_what_can_not_be_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_missing_and_damaged_files_are_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no file at .*a\.json: an earlier stage has not run yet"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(InputFileError, match=r"can't read .*Delete it and run the stage again"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputFileError, match="can't read"):
        read_json(tmp_path / "a.json")


def test_a_folder_that_can_not_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"can't write .*a\.json"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_full_disk_is_a_storage_error_and_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with (
        pytest.raises(StorageError, match=r"can't write .*a\.txt: No space left on device"),
        replacing(tmp_path / "a.txt"),
    ):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_errors_of_inputs_pass_through_a_write(tmp_path):
    with pytest.raises(InputFileError, match="the scene is damaged"), replacing(tmp_path / "a.txt"):
        raise InputFileError("the scene is damaged")


def test_a_write_without_permission_is_a_storage_error(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        write_text(tmp_path / "a.txt", "text")
    assert names(tmp_path) == []


def test_near_misses_are_offered():
    assert did_you_mean("wter", ["water", "forest"]) == " Did you mean 'water'?"
    assert did_you_mean("zzz", ["water", "forest"]) == " Known: forest, water."
    assert did_you_mean("x", []) == ""


def test_results_as_json_hold_null_for_what_is_not_known(capsys):
    console = Console(as_json=True)
    console.answer("", interval=[float("nan"), 0.5], best={"a": float("inf")})
    console.finish()

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"interval": [None, 0.5], "best": {"a": None}}
