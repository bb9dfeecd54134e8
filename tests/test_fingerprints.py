"""Stamps of files: another content is another stamp, even with the old name, size and times."""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest

from cobertes.fingerprints import SAMPLE_BYTES, SAMPLES, fingerprint_of, stamp


def exchange(path, content):
    """Replace a file's content and restore its times of access and modification, as `cp -p` does."""
    state = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_an_untouched_file_keeps_its_stamp(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(bytes(1000))
    assert stamp(path) == stamp(str(path))
    assert stamp(path)[0] == "scene.tif"


def test_an_exchanged_file_of_the_same_size_and_time_has_another_stamp(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(bytes(1000))
    before = stamp(path)
    exchange(path, bytes(999) + b"x")
    assert stamp(path) != before


@pytest.mark.parametrize("position", [0, -1])
def test_a_large_file_is_hashed_from_its_first_to_its_last_byte(tmp_path, position):
    path = tmp_path / "scene.tif"
    content = bytearray(3 * SAMPLES * SAMPLE_BYTES + 7)
    path.write_bytes(content)
    before = stamp(path)
    content[position] = 1
    exchange(path, bytes(content))
    assert stamp(path) != before


def test_a_folder_changes_with_its_files(tmp_path):
    inner = tmp_path / "granule" / "IMG"
    inner.mkdir(parents=True)
    (inner / "B02.jp2").write_bytes(b"12")
    before = stamp(tmp_path / "granule")
    assert stamp(tmp_path / "granule") == before
    (inner / "B03.jp2").write_bytes(b"12")
    assert stamp(tmp_path / "granule") != before


def test_a_missing_file_has_its_name_alone(tmp_path):
    assert stamp(tmp_path / "none.tif") == [str(tmp_path / "none.tif")]
    assert stamp("/vsis3/bucket/a.tif") == ["/vsis3/bucket/a.tif"]
    assert stamp("http://127.0.0.1:9/a.tif") == ["http://127.0.0.1:9/a.tif"]  # no server there


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_file_on_a_server_is_known_by_its_version(tmp_path):
    path = tmp_path / "map.tif"
    path.write_bytes(bytes(100))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/map.tif"
        before = stamp(url)
        assert before == [url, "Sun, 09 Sep 2001 01:46:40 GMT", "100"]
        assert stamp(f"/vsicurl/{url}")[1:] == stamp(f"/vsicurl?url={quote(url, safe='')}")[1:] == before[1:]
        os.utime(path, (1_000_000_060, 1_000_000_060))
        assert stamp(url) != before
        server.shutdown()


def test_a_fingerprint_depends_on_every_part_and_not_on_the_order_of_keys():
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
    assert len({fingerprint_of(1), fingerprint_of(2), fingerprint_of(1, 2), fingerprint_of([1, 2])}) == 4


def test_a_copy_that_keeps_its_time_has_the_same_stamp(tmp_path):
    (tmp_path / "scene.tif").write_bytes(bytes(range(200)))
    (tmp_path / "copy").mkdir()
    shutil.copy2(tmp_path / "scene.tif", tmp_path / "copy")
    assert stamp(tmp_path / "copy" / "scene.tif") == stamp(tmp_path / "scene.tif")
