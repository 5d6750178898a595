"""The server and its page: started beside the API where wanted, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.server_process import ServerProcess, wait_until

TRIPWIRE = "from pathlib import Path\nPath({marker!r}).touch()\nraise SystemExit('no page today')\n"


@pytest.mark.parametrize("wanted", [True, False])
def test_gradio_is_imported_by_the_page_alone(tmp_path: Path, wanted: bool) -> None:
    """With `--no-webui` never; with a page not by the API, which serves whatever happens to it."""
    marker = tmp_path / "imported"
    (tmp_path / "gradio").mkdir()
    (tmp_path / "gradio" / "__init__.py").write_text(TRIPWIRE.format(marker=str(marker)))
    flags = ("--webui", "--webui-port", "0") if wanted else ("--no-webui",)
    with ServerProcess(*flags, environment={"PYTHONPATH": str(tmp_path)}) as server:
        server.wait_until_ready()
        assert server.complete().status_code == 200
        if wanted:
            wait_until(marker.exists)
            wait_until(lambda: "starting it again" in str(server.lines))
        assert server.get("/health/live").status_code == 200
        assert server.complete().status_code == 200
        server.signal()
        assert server.wait() == 0
    assert marker.exists() is wanted
    if not wanted:
        assert "page" not in " ".join(str(line["msg"]) for line in server.log)
