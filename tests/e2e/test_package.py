"""The wheel carries the embedded models and answers from any folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT, task


def test_the_wheel_works_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("vlroute-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    for name in ("instruct/model.safetensors", "thinking/model.safetensors", "router/router.json"):
        assert f"vlroute/models/pocket/{name}" in names
    hybrid = installed / "vlroute/models/pocket-hybrid"
    assert sum(file.stat().st_size for file in hybrid.rglob("*") if file.is_file()) < 8 * 2**20
    assert "vlroute/models/encoder/0_StaticEmbedding/model.safetensors" in names
    some = task("ocr", "easy", seed=1)
    some.frames[0].save(tmp_path / "x.png")
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import vlroute; assert vlroute.__file__.startswith(sys.path[0]), vlroute.__file__\n"
        "for name in (None, 'pocket', 'pocket-hybrid'):\n"
        f"    print(vlroute.Router.from_pretrained(name).ask({some.prompt!r}, images='x.png'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [some.answer] * 3
