"""Folders that go with the process, also with one that is killed."""

import os
import signal
import subprocess
import sys
import tempfile

from tiny_runs import PYTHONPATH

from grpo_mm.processes.own_folder import OwnFolder

CODE = """
import time
from grpo_mm.processes.own_folder import OwnFolder
folder = OwnFolder("tried")
(folder.path / "weights").write_bytes(b"x")
print(folder.path, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_has_left_is_cleared_by_the_next_and_what_is_in_use_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "TMPDIR": str(tmp_path)}
    foreign = tmp_path / "grpo_mm_tried_by_hand"
    foreign.mkdir()  # nobody says whose it is
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        path = tmp_path / process.stdout.readline().strip()
        mine = OwnFolder("tried")
        assert (path / "weights").is_file() and path.stat().st_mode & 0o77 == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.is_dir()
        other = OwnFolder("tried")
        assert not path.exists() and mine.path.is_dir() and other.path.is_dir() and foreign.is_dir()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    mine.close()
    mine.close()
    gone = other.path
    del other
    assert sorted(tmp_path.iterdir()) == [foreign] and not gone.exists()


def test_it_holds_what_is_put_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = OwnFolder("tried")
    assert folder.files() == []
    (folder.path / "b").touch()
    (folder.path / "a").touch()
    assert [path.name for path in folder.files()] == ["a", "b"]
