"""Promises, with real processes: no torn record at full speed, every loss counted, and a death at
any step leaves a store that the next writer takes over.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k4.core.enums import Kind
from k4.core.errors import StoreBusy, StoreForeign
from k4.core.records import Bookticker
from k4.core.shm import ShmMdReader, ShmMdStore

SHM = Path("/dev/shm")
HERE = Path(__file__).parent
B, D = Kind.BOOKTICKER, Kind.DEPTH5


@pytest.fixture
def name() -> Iterator[str]:
    name = f"k4test_processes_{os.getpid()}"
    yield name
    for entry in os.listdir(SHM):
        if name in entry:
            (SHM / entry).unlink()


class Process:
    """A script beside this file that talks JSON lines and waits for a line before it goes on."""

    def __init__(self, script: str, *args: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", HERE / script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # forking wants a single thread
        )

    def hear(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"the process ended with {self.popen.wait()}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def go(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.mark.parametrize(
    ("kind", "slots", "count"),
    [(B, 2, 500_000), (B, 3, 500_000), (D, 64, 300_000), (B, 100_000, 900_000)],
)
def test_torn_read_hunt(name: str, kind: Kind, slots: int, count: int) -> None:
    with contextlib.ExitStack() as stack:
        write = Process("shm_writer.py", "write", name, int(kind), slots, count)
        writer = stack.enter_context(write)
        assert writer.hear()["ready"]
        hows = ("since", "follow", "latest")
        readers = [
            stack.enter_context(Process("shm_writer.py", "read", name, how, count)) for how in hows
        ]
        for reader in readers:
            assert reader.hear()["ready"]
        # One reader starts with the writer; in the great ring the others start a lap late.
        for process in (readers[0], writer):
            process.go()
        with ShmMdReader(name) as here:
            while slots > 64 and here.cursor("BTCUSDT") < 2 * slots:
                time.sleep(0)
        for late in readers[1:]:
            late.go()
        assert writer.hear() == {"written": count}
        ends = dict(zip(hows, (reader.hear() for reader in readers), strict=True))
    for end in ends.values():
        assert end["torn"] == 0
        assert end["read"] + end["lost"] == count
        assert end["read"] > 0
    assert ends["follow"]["gaps"] > 0  # it was lapped, so the promise was put to the test
    assert ends["follow"]["lost"] > 0


C_PEER = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
/* A program that knows the contract alone: argv: write|read, path, last. One instrument is used. */
int main(int argc, char **argv) {
  int writing = argv[1][0] == 'w', fd = open(argv[2], writing ? O_RDWR : O_RDONLY);
  int64_t last = atoll(argv[3]), lost = 0, seen = 0, torn = 0, cursor = 0;
  struct stat st;
  if (argc != 4 || fd < 0 || fstat(fd, &st)) return 2;
  char *at = mmap(0, st.st_size, writing ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return 3;
  uint64_t size = *(uint32_t *)(at + 12);
  volatile int64_t *index = (volatile int64_t *)(at + 16 + 32);
  char *records = at + 16 + 48;
  if (writing) {
    for (int64_t n = *index + 1; n < last; n++) {
      uint64_t *w = (uint64_t *)(records + n % size * 112);
      memcpy(w, at + 16, 32);
      w[4] = n & 7;
      for (int k = 5; k < 12; k++) w[k] = k == 5 ? (uint64_t)n : (uint64_t)0;
      double prices[4] = {(double)n, n + 0.5, n + 0.75, n * 2.0};
      w[6] = (uint64_t)n * 3; w[7] = (uint64_t)n + 1;
      memcpy(w + 8, prices, 32);
      ((int32_t *)(w + 12))[0] = (int32_t)n; ((int32_t *)(w + 12))[1] = -(int32_t)n;
      w[13] = (uint64_t)n * 0x9E3779B97F4A7C15ull;
      __asm__ volatile("" ::: "memory");
      *index = n;
      ++*(volatile uint64_t *)at;
      if (n % 1000 == 0) for (volatile int pause = 0; pause < 20000; pause++) { }
    }
    printf("{\"written\": %lld}\n", (long long)last);
    return 0;
  }
  puts("{\"ready\": true}"); fflush(stdout); getchar();
  while (cursor < last) {
    int64_t c = *index;
    if (c < cursor) continue;
    if (c - cursor >= (int64_t)size - 1) {
      lost += c - (int64_t)size + 2 - cursor; cursor = c - (int64_t)size + 2;
    }
    uint64_t w[14];
    __asm__ volatile("" ::: "memory");
    memcpy(w, records + cursor % size * 112, 112);
    __asm__ volatile("" ::: "memory");
    if (*index - cursor >= (int64_t)size - 1) continue;
    double bid; memcpy(&bid, w + 8, 8);
    torn += w[5] != (uint64_t)cursor || w[6] != w[5] * 3 || w[7] != w[5] + 1 ||
            bid != (double)cursor || w[13] != w[5] * 0x9E3779B97F4A7C15ull;
    seen++; cursor++;
  }
  printf("{\"read\": %lld, \"lost\": %lld, \"torn\": %lld}\n", (long long)seen, (long long)lost,
         (long long)torn);
  return 0;
}
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    (folder / "peer.c").write_text(C_PEER)
    gcc = ["gcc", "-std=gnu11", "-O2", "-Wall", "-o"]
    subprocess.run([*gcc, folder / "peer", folder / "peer.c"], check=True)
    return folder / "peer"


@pytest.mark.parametrize("slots", [16, 4096])
def test_a_c_writer_many_times_faster_tears_nothing(name: str, peer: Path, slots: int) -> None:
    count = 2_000_000
    with ShmMdStore(name, B, ["BTCUSDT"], slots):
        pass  # the shape; the C program is the writer
    with Process("shm_writer.py", "read", name, "since", count) as reader:
        assert reader.hear()["ready"]
        reader.go()
        subprocess.run([peer, "write", SHM / name, str(count)], check=True, capture_output=True)
        end = reader.hear()
    assert (end["torn"], end["read"] + end["lost"]) == (0, count)
    assert end["gaps"] > 0
    assert end["read"] > 0


def test_a_c_reader_reads_what_python_writes(name: str, peer: Path) -> None:
    count = 300_000
    with Process("shm_writer.py", "write", name, int(B), 8, count) as writer:
        writer.hear()
        command: list[str | Path] = [peer, "read", SHM / name, str(count)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert reader.stdout.readline()
            reader.stdin.write("\n")
            reader.stdin.flush()
            writer.go()
            assert writer.hear() == {"written": count}
            end = json.loads(reader.stdout.readline())
    assert (end["torn"], end["read"] + end["lost"]) == (0, count)
    assert end["read"] > 0


SCENARIOS = {  # and how many steps at least it must have been killed at
    "create": 100,
    "attach": 80,
    "replace": 150,
    "replace-original": 150,
    "publish": 150,
    "remove": 20,
}


@pytest.mark.parametrize(("scenario", "steps"), SCENARIOS.items())
def test_killed_at_every_step(name: str, scenario: str, steps: int) -> None:
    with Process("shm_killpoints.py", scenario, name) as run:
        assert run.hear()["points"] >= steps


def test_killed_under_load_and_restarted_under_a_live_reader(name: str) -> None:
    """Deaths at random moments of publishing; one reader keeps one mapping over all of them."""
    chance = random.Random(20_261)
    reader: ShmMdReader | None = None
    inode, cursor, seen = 0, 0, 0
    for life in range(1, 6):
        with Process("shm_writer.py", "write", name, int(B), 1000, 0) as writer:
            hello = writer.hear()
            assert (hello["attached"], hello["epoch"]) == (life > 1, life)
            if reader is None:
                reader, inode = ShmMdReader(name), (SHM / name).stat().st_ino
            assert hello["next"] == reader.cursor("BTCUSDT")
            assert reader.writer_pid == writer.popen.pid
            assert reader.writer_alive()
            writer.go()
            target = reader.cursor("BTCUSDT") + chance.randrange(1, 50_000)
            while reader.cursor("BTCUSDT") < target:
                time.sleep(0)
            writer.kill()
            assert not reader.writer_alive()
            assert reader.writer_pid == writer.popen.pid  # a stale pid proves nothing
        records, end, lost = reader.since("BTCUSDT", cursor)
        assert len(records) + lost == end - cursor
        assert records["event_timestamp_us"].tolist() == list(range(end - len(records), end))
        assert (records["update_id"] == records["event_timestamp_us"] + 1).all()
        seen, cursor = seen + len(records), end
    assert reader is not None
    assert seen >= 5
    assert ((SHM / name).stat().st_ino, reader.closed, reader.epoch) == (inode, False, 5)
    with ShmMdStore(name, B, ["BTCUSDT", "ETHUSDT"], 1000):
        assert reader.update_num == reader.cursor("BTCUSDT")
    reader.close()


def test_a_second_process_is_refused(name: str) -> None:
    with Process("shm_writer.py", "write", name, int(B), 8, 0) as writer:
        writer.hear()
        with pytest.raises(StoreBusy, match=f"process {writer.popen.pid} is writing") as caught:
            ShmMdStore(name, B, ["BTCUSDT", "ETHUSDT"], 8)
        assert caught.value.pid == writer.popen.pid
        writer.go()
        with ShmMdReader(name) as reader:
            first = next(reader.follow("BTCUSDT", start="oldest"))  # it goes on, undisturbed
            assert isinstance(first, Bookticker)
            while reader.cursor("BTCUSDT") < 1000:
                time.sleep(0)


@pytest.mark.parametrize("kill", [False, True])
def test_a_readers_end_removes_nothing(name: str, kill: bool) -> None:
    with ShmMdStore(name, B, ["BTCUSDT"], 8) as store:
        store.ring.lanes[0].publish(0, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1, 1, 1)
        before = (SHM / name).read_bytes()
        with Process("shm_writer.py", "attach-and-exit", name) as reader:
            assert reader.hear()["latest"]
            if kill:
                reader.kill()
            else:
                reader.go()
                assert reader.popen.wait() == 0
        assert (SHM / name).read_bytes() == before
        with ShmMdReader(name) as after:
            assert after.writer_alive()


def test_a_forked_child_neither_keeps_nor_ends_the_writers_lock(name: str) -> None:
    with Process("shm_writer.py", "fork", name) as parent:
        heard = parent.hear()
        assert heard["alive"]
        assert heard["pid"] == heard["parent"] == parent.popen.pid
        parent.kill()
        os.kill(heard["child"], 0)  # the child lives on and still has the store mapped
        with ShmMdReader(name) as reader:
            assert not reader.writer_alive()
        with ShmMdStore(name, B, ["BTCUSDT", "ETHUSDT"], 8) as store:
            assert (store.attached, store.epoch) == (True, 2)
        parent.go()


def test_a_private_store_is_closed_to_other_users(name: str) -> None:
    """As root, with a real other user; otherwise root's place is taken by dropping all rights."""
    with ShmMdStore(name, B, ["BTCUSDT"], 8):
        pass
    if os.geteuid() == 0:
        os.seteuid(65_534)
        try:
            for refused in (lambda: ShmMdReader(name), lambda: ShmMdStore(name, B, ["BTCUSDT"], 8)):
                with pytest.raises(StoreForeign, match="does not let this user"):
                    refused()
        finally:
            os.seteuid(0)
    else:
        (SHM / name).chmod(0)
        with pytest.raises(StoreForeign, match="does not let this user"):
            ShmMdReader(name)
