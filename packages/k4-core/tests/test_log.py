"""The log: where lines go, what they hold, and that nothing is left behind."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k4.core import log as log_module
from k4.core.clock import SystemClock
from k4.core.config import Secret
from k4.core.errors import K4Error
from k4.core.log import configure, get_logger

NOON = 1_795_348_800_000_000_000  # 2026-11-22 12:00:00 UTC
DAY = 86_400_000_000_000


class StillClock(SystemClock):
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = NOON
        self.seconds = 0.0

    def time_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = list(logging.getLogger().handlers)
    yield
    assert log_module._router.output is log_module._router.default
    assert logging.getLogger().handlers == before


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_are_json_on_stderr_when_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with configure("info", module_name="binance_md", worker="w1", clock=StillClock()):
        get_logger("k4.x").info("line up", stream="binance.spot.json", line=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert lines(err) == [
        {
            "timestamp": "2026-11-22T12:00:00.000000Z",
            "level": "info",
            "event": "line up",
            "module": "binance_md",
            "worker": "w1",
            "logger": "k4.x",
            "stream": "binance.spot.json",
            "line": 2,
        }
    ]


def test_a_terminal_gets_lines_for_humans() -> None:
    program = (
        "from k4.core.log import configure, get_logger\n"
        "with configure('info', module_name='m'): get_logger('k4.x').info('line up', line=2)"
    )
    master, slave = os.openpty()
    with os.fdopen(master, "rb") as terminal:
        subprocess.run([sys.executable, "-c", program], stderr=slave, check=True)
        text = os.read(terminal.fileno(), 4096).decode()
        os.close(slave)
    assert "line up" in text
    assert not text.startswith("{")


def test_level_decides(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger("k4.x")
    with configure("warning", module_name="m"):
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")
    with configure("debug", module_name="m"):
        log.debug("e")
    assert [line["event"] for line in lines(capsys.readouterr().err)] == ["c", "d", "e"]


def test_before_configure_only_warnings_show(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("k4.x").info("quiet")
    get_logger("k4.x").warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line["event"] for line in lines(err)] == ["loud"]


def test_unknown_level_is_refused() -> None:
    with pytest.raises(K4Error, match=r"unknown log level 'loud' \(use one of debug"):
        configure("loud", module_name="m")


def test_file_changes_with_the_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = StillClock()
    with configure("info", log_dir=str(tmp_path / "new"), module_name="m d/x", clock=clock):
        get_logger("k4.x").info("first")
        clock.now += DAY
        get_logger("k4.x").info("second")
        get_logger("k4.x").info("third")
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in files] == ["m_d_x.2026-11-22.log", "m_d_x.2026-11-23.log"]
    assert [line["event"] for line in lines(files[0].read_text())] == ["first"]
    assert [line["event"] for line in lines(files[1].read_text())] == ["second", "third"]
    assert len(lines(capsys.readouterr().err)) == 3


def test_workers_have_their_own_files(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom k4.core.log import configure, get_logger\n"
        "with configure('info', log_dir=sys.argv[1], module_name='m', worker=sys.argv[2]):\n"
        "    for i in range(200): get_logger('k4.x').info('tick', i=i)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), name], stderr=subprocess.DEVNULL
        )
        for name in ("spot", "ubase")
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    for name in ("spot", "ubase"):
        (file,) = tmp_path.glob(f"m.{name}.*.log")
        found = lines(file.read_text())
        assert [line["i"] for line in found] == list(range(200))
        assert {line["worker"] for line in found} == {name}


def test_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(K4Error, match="cannot make the log directory"):
        configure("info", log_dir=str(tmp_path / "file" / "x"), module_name="m")


def test_full_disk_is_said_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with configure("info", log_dir="/dev/shm", module_name="m", clock=StillClock()) as logs:
        file = logs._output._file
        assert file is not None
        full = os.open("/dev/full", os.O_WRONLY)
        file.write("2026-11-22", b"")
        path = file.path("2026-11-22")
        os.dup2(full, file._fd)
        os.close(full)
        get_logger("k4.x").info("one")
        get_logger("k4.x").info("two")
    path.unlink()
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("the log file cannot be written: ")
    assert [json.loads(line)["event"] for line in err[1:]] == ["one", "two"]


def test_no_secret_reaches_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9v"
    log = get_logger("k4.td")
    with configure("debug", log_dir=str(tmp_path), module_name="td", secrets=[Secret(secret)]):
        log.info("sent", api_key=secret, headers={"X-MBX-APIKEY": secret, "Host": "x"})
        log.info(f"POST https://x/order?a=1&signature={secret}")
        log.info("POST %s", f"https://x/order?listenKey={secret}")
        log.info(
            "echo", answer=f"unknown user {secret}", raw=secret.encode(), secret=Secret(secret)
        )
        log.bind(listenKey=secret).warning("expired", nested=[{"deep": (Secret(secret),)}])
        try:
            raise K4Error(f"GET https://x/ws/{secret} failed", remedy=f"apiKey={secret}")
        except K4Error:
            log.exception("failed")
        logging.getLogger("elsewhere").warning("connecting to /ws/%s", secret)
        try:
            raise ValueError(secret)
        except ValueError:
            logging.getLogger("elsewhere").exception("bad")
    (file,) = tmp_path.iterdir()
    for text in (file.read_text(), capsys.readouterr().err):
        assert secret not in text
        assert len(lines(text)) == 8
        assert "Traceback" in text


def test_other_libraries_speak_from_warning_up(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("websockets.client")
    with configure("debug", module_name="m"):
        library.debug("> TEXT 'frame with a key'")
        library.warning("%s lost", "connection")
    (line,) = lines(capsys.readouterr().err)
    assert (line["logger"], line["event"]) == ("websockets.client", "connection lost")


def test_a_second_configure_replaces_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", log_dir=str(tmp_path / "a"), module_name="m")
    with configure("info", log_dir=str(tmp_path / "b"), module_name="m"):
        get_logger("k4.x").info("once")
    assert list((tmp_path / "a").iterdir()) == []
    assert len(list((tmp_path / "b").iterdir())) == 1
    assert len(lines(capsys.readouterr().err)) == 1


def test_stderr_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom k4.core.log import configure, get_logger\n"
        "sys.stderr.close()\n"
        "with configure('info', log_dir=sys.argv[1], module_name='m'):\n"
        "    get_logger('k4.x').info('still here')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    (file,) = tmp_path.iterdir()
    assert lines(file.read_text())[0]["event"] == "still here"


def test_structlog_of_the_embedding_program_is_left_alone() -> None:
    import structlog

    before = structlog.get_config()
    with configure("info", module_name="m"):
        assert structlog.get_config() == before
