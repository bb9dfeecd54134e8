"""Scenes and reference maps that lie on a server: read through GDAL, as those on a disk are."""

import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cobertes.cli.main import app
from cobertes.workflow.project import load_project
from cobertes.workflow.run import Run
from cobertes.workflow.scene_paths import resolve, scene_files
from helpers.projects import write_ground, write_project
from helpers.rasters import read_raster


class Ranges(SimpleHTTPRequestHandler):
    """Python's own server gives whole files only; GDAL asks for parts."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file() or "Range" not in self.headers:
            return super().do_GET()
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        size = path.stat().st_size
        begin, end = int(first), min(int(last or size), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.end_headers()
        self.wfile.write(path.read_bytes()[begin : end + 1])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """In a process of its own: GDAL opens a file without letting other threads of Python run."""
    folder = tmp_path / "server"
    folder.mkdir()
    write_ground(folder)
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}", folder
    process.kill()
    process.communicate()


def test_a_project_reads_scenes_and_reference_from_a_server(tmp_path, server):
    address, folder = server
    for place, name in ((address, "far"), (str(folder), "near")):
        home = tmp_path / name
        home.mkdir()
        path = write_project(home)
        text = path.read_text(encoding="utf-8")
        for file in ("april.tif", "august.tif", "reference.tif"):
            text = text.replace(f'"{file}"', f'"{place}/{file}"')
        path.write_text(text, encoding="utf-8")
        run = Run(load_project(path), home / "run")
        run.run(only="labels")
        run.run(only="tiles")
        scenes = run.project.areas[0].scenes
        assert list(scenes) == ["april", "august"]
    for file in ("labels/here.tif", "labels/here.purity.tif"):
        assert np.array_equal(
            read_raster(tmp_path / "far" / "run" / file), read_raster(tmp_path / "near" / "run" / file)
        )
    for file in ("tiles.parquet", "statistics.json", "split.json"):
        assert (tmp_path / "far" / "run" / file).read_bytes() == (tmp_path / "near" / "run" / file).read_bytes()


def test_commands_take_a_reference_map_from_a_server(tmp_path, server):
    address, folder = server
    scene = folder / "april.tif"

    def call(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output

    for place, name in ((address, "far"), (folder, "near")):
        reference, out = f"{place}/reference.tif", tmp_path / name
        call("labels", reference, "--like", scene, "-o", out / "labels.tif")
        call("compare-labels", reference, "--like", scene, "-o", out / "compared")
        call("init", scene, "--reference", reference, "-o", out / "project.toml")
        load_project(out / "project.toml")
    for file in ("labels.tif", "compared/majority.tif"):
        assert np.array_equal(read_raster(tmp_path / "far" / file), read_raster(tmp_path / "near" / file))


def test_names_of_object_stores_are_what_gdal_calls_them():
    assert scene_files("s3://bucket/a.tif, gs://b/c.tif, az://d/e.tif, https://host/f.tif, /vsizip/g.zip/h.tif") == [
        "/vsis3/bucket/a.tif", "/vsigs/b/c.tif", "/vsiaz/d/e.tif", "https://host/f.tif", "/vsizip/g.zip/h.tif"
    ]  # fmt: skip
    assert str(resolve("s3://bucket/map.tif", Path("home"))) == "/vsis3/bucket/map.tif"
    assert str(resolve("https://host/map.tif", Path("home"))) == "/vsicurl?url=https%3A%2F%2Fhost%2Fmap.tif"
    assert resolve("map.tif", Path("home")) == Path("home/map.tif")


if __name__ == "__main__":
    found = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=sys.argv[1]))
    print(found.server_address[1], flush=True)
    found.serve_forever()
