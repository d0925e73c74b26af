"""Whole copies: the same as the command line's, with a callback."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROGRAM, SIZE, Server, are_closed, descriptors

import blockferry
from blockferry import Progress, copy


def test_a_file_is_copied_from_each_kind_of_server(
    writable: str, disk: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.raw"
    report = copy(writable, target)
    assert target.read_bytes() == disk.read_bytes()
    assert (report.size, report.data, report.zero) == (SIZE, 2 << 20, 2 << 20)
    assert report.flushed and not report.verified
    assert report.seconds > 0 and report.bytes_per_second > 0
    assert target.stat().st_blocks * 512 < SIZE


def test_a_server_is_written(writable: str, disk: Path) -> None:
    copy("sample:4M", writable, verify=True)
    with blockferry.Client("sample:4M", read_only=True) as sample:
        assert disk.read_bytes() == sample.read(SIZE, 0)


def test_an_image_is_converted(tmp_path: Path) -> None:
    target = tmp_path / "disk.qcow2"
    options = {"cluster_size": "128K", "lazy_refcounts": True, "compression_type": "zstd"}
    copy("sample:4M", target, output_format="qcow2", compress=True, options=options)
    checked = subprocess.run(["qemu-img", "check", "-q", str(target)], check=False)
    assert checked.returncode == 0
    facts = blockferry.info(target).export.format
    assert facts is not None and facts.cluster_size == 128 << 10
    assert facts.raw["lazy-refcounts"] is True
    back = tmp_path / "back.raw"
    copy(target, back)
    with blockferry.Client("sample:4M", read_only=True) as sample:
        assert back.read_bytes() == sample.read(SIZE, 0)


def test_progress_is_told_in_order_and_at_the_end(tmp_path: Path) -> None:
    heard: list[Progress] = []
    thread = threading.current_thread()

    def progress(news: Progress) -> None:
        assert threading.current_thread() is thread
        heard.append(news)

    report = copy("sample:64M", tmp_path / "a", progress=progress, interval=0, verify=True)
    copied = [news for news in heard if news.phase != "verifying"]
    assert copied == sorted(copied, key=lambda news: news.done)
    assert all(news.done == news.data + news.zero for news in copied)
    assert heard[-1].done == heard[-1].size == report.size
    assert report.verified


def test_a_callback_that_raises_ends_the_copy(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def progress(news: Progress) -> None:
        raise Enough(news.phase)

    target = tmp_path / "copy.raw"
    # What listens for signals is opened once.
    copy("sample:1M", "null:")
    before = descriptors()
    with pytest.raises(Enough, match="copying"):
        copy("sample:1G", target, progress=progress, rate=1 << 20)
    assert not target.exists()
    assert os.listdir(tmp_path) == []
    assert are_closed(before)


def test_a_copy_that_has_returned_holds_nothing(tmp_path: Path) -> None:
    copy("sample:1M", "null:")
    before = descriptors()
    for number in range(20):
        copy("sample:1M", tmp_path / f"{number}.raw", verify=True)
        assert descriptors() <= before


def test_a_copy_is_cancelled_from_another_thread(tmp_path: Path) -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    with pytest.raises(blockferry.Cancelled) as caught:
        copy("sample:1G", tmp_path / "copy.raw", rate=1 << 20, cancel=cancel)
    assert caught.value.kind == "interrupted"
    assert any("not kept" in note for note in caught.value.notes)
    assert os.listdir(tmp_path) == []


def test_the_digest_is_computed_and_compared(tmp_path: Path) -> None:
    report = copy("sample:1M", "null:", checksum="md5/64k")
    words = [PROGRAM, "checksum", "--quiet", "--algorithm=md5/64k", "sample:1M"]
    assert report.digest is not None
    assert report.digest in subprocess.check_output(words, text=True)
    assert report.digest_algorithm == "md5/64k"
    target = tmp_path / "copy.raw"
    copy("sample:1M", target, expect=f"md5/64k:{report.digest}")
    target.unlink()
    with pytest.raises(blockferry.Mismatch):
        copy("sample:1M", target, expect=f"md5/64k:{'0' * 32}")
    assert not target.exists()


def test_filters_stand_in_front_of_the_source(tmp_path: Path) -> None:
    target = tmp_path / "part.raw"
    copy("pattern:1M", target, filters=["truncate:4096", "offset:65536"])
    assert target.stat().st_size == 4096
    assert target.read_bytes()[:8] == (65536).to_bytes(8, "big")


def test_a_hostile_image_is_refused(tmp_path: Path) -> None:
    base, overlay, target = (tmp_path / name for name in ("base", "overlay", "target"))
    base.write_bytes(b"secret" * 10000)
    os.system(f"qemu-img create -q -f qcow2 -F raw -b {base} {overlay}")
    with pytest.raises(blockferry.NotPermitted):
        copy(overlay, target)
    assert not target.exists()
    copy(overlay, target, allow_backing=[tmp_path])
    assert target.read_bytes()[:6] == b"secret"


def test_a_copy_that_fails_says_what_became_of_the_destination(
    nbdkit: Callable[..., Server], tmp_path: Path
) -> None:
    server = nbdkit("--filter=error", "memory", "4M", "error-pread=EIO", "error-pread-rate=100%")
    target = tmp_path / "copy.raw"
    with pytest.raises(blockferry.Error) as caught:
        copy(server.uri, target, extents=False, retries=0)
    assert caught.value.kind == "io"
    assert caught.value.operation == "read"
    assert not target.exists()
    assert any("not kept" in note for note in caught.value.notes)


def test_a_server_that_dies_is_waited_for_and_then_given_up(
    nbdkit: Callable[..., Server], tmp_path: Path
) -> None:
    server = nbdkit("--filter=rate", "random", "64M", "rate=32M")

    def progress(news: Progress) -> None:
        if news.done:
            server.kill()

    with pytest.raises(blockferry.Error) as caught:
        copy(server.uri, tmp_path / "copy.raw", retries=1, progress=progress)
    assert caught.value.kind in ("connection-lost", "refused")
    assert os.listdir(tmp_path) in ([], [server.socket.name])


@pytest.mark.parametrize(
    ("source", "destination", "options"),
    [
        ("null:", "copy.raw", {}),
        ("sample:1M", "sample:1M", {}),
        ("sample:1M", "copy.raw", {"connections": 0}),
        ("sample:1M", "copy.raw", {"request_size": 5}),
        ("sample:1M", "copy.raw", {"compress": True}),
        ("sample:1M", "copy.raw", {"output_format": "nonsense"}),
        ("sample:1M", "copy.raw", {"filters": ["nonsense"]}),
        ("sample:1M", "copy.raw", {"options": {"cluster_size": 4096}}),
        ("http://host/", "copy.raw", {}),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_touched(
    source: str,
    destination: str,
    options: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(blockferry.InvalidInput):
        copy(source, destination, **options)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_name_is_never_taken_for_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy("sample:1M", "--verify")
    assert os.listdir(tmp_path) == ["--verify"]
    copy(Path("--verify"), Path("-"))
    assert sorted(os.listdir(tmp_path)) == ["-", "--verify"]


def test_a_copy_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    target, note = tmp_path / "copy.raw", tmp_path / "note"
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(8 << 20))

    class Enough(Exception):
        pass

    def progress(news: Progress) -> None:
        if news.done >= 2 << 20:
            raise Enough

    with pytest.raises(Enough):
        copy(source, target, checkpoint=note, progress=progress, interval=0, rate=4 << 20)
    assert note.exists() and not target.exists()
    report = copy(source, target, checkpoint=note)
    assert report.resumed > 0
    assert target.read_bytes() == source.read_bytes()
    assert not note.exists()


def test_a_page_is_written_about_a_copy(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    copy("sample:1M", tmp_path / "copy.raw", report=page)
    assert page.read_text().startswith("<!doctype html>")


INTERRUPTED = """
import sys
import blockferry
def progress(news):
    print(news.done, flush=True)
try:
    blockferry.copy("sample:1G", sys.argv[0] + ".raw", rate=1 << 20, progress=progress)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_copy(
    script: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = script(INTERRUPTED)
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert output.endswith("interrupted\n"), errors
    assert errors == ""
    assert time.monotonic() - begun < 30
    assert os.listdir(tmp_path) == ["script.py"]


def test_other_threads_run_while_a_copy_does(tmp_path: Path) -> None:
    counted = 0
    done = threading.Event()

    def work() -> None:
        copy("sample:4M", tmp_path / "copy.raw", rate=4 << 20, extents=False)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        counted += 1
        time.sleep(0.001)
    thread.join()
    assert counted > 10


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = copy("sample:1M", tmp_path / "disk.qcow2", checksum=True)
    assert len(report.warnings) == 1 and "raw image" in report.warnings[0]
    assert capfd.readouterr() == ("", "")
