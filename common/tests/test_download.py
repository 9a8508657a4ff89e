"""Downloads from a server on this machine: resumed, checked, refused; no test here touches the network."""

import errno
import fcntl
import hashlib
import os
import resource
import signal
import socket

import pytest

from common import download, web
from common.download import Remote, fetch
from common.errors import UserError
from common.tests.file_server import serving

CONTENT = bytes(range(256)) * 4000                    # about a megabyte: several blocks
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA = hashlib.sha256(CONTENT).hexdigest()
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def site(monkeypatch):
    """A server that has the file, and no proxies on the way; tries follow one another at once."""
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0, 0.0))
    for name in (*PROXIES, *web.BUNDLES):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        found.content["/file.bin"] = CONTENT
        yield found


def remote(site, digest=MD5, most=2_000_000, urls=None) -> Remote:
    return Remote("file.bin", urls or (f"{site.url}/file.bin",), digest, most)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failed(file, folder, code="E-DOWNLOAD") -> str:
    """The one line of a failed download."""
    with pytest.raises(UserError) as caught:
        fetch(file, folder)
    assert caught.value.code == code and "\n" not in str(caught.value)
    return str(caught.value)


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# --- whole downloads ---

@pytest.mark.parametrize("digest", [MD5, f"sha256:{SHA}", MD5.upper().replace("MD5", "md5")])
def test_a_file_comes_whole_and_is_not_asked_for_again(tmp_path, site, digest):
    folder = tmp_path / "new" / "data"
    assert fetch(remote(site, digest), folder) == folder / "file.bin"
    assert (folder / "file.bin").read_bytes() == CONTENT and names(folder) == ["file.bin"]
    assert fetch(remote(site, digest), folder) == folder / "file.bin"
    assert site.asked == [("/file.bin", None, None)]


def test_a_server_that_does_not_say_the_length(tmp_path, site):
    site.length = False
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_other_addresses_are_tried_in_turn(tmp_path, site):
    nowhere = f"http://127.0.0.1:{closed_port()}/file.bin"
    fetch(remote(site, urls=(f"{site.url}/none", nowhere, f"{site.url}/file.bin")), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


# --- cut off, and on again ---

def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path, site, capsys):
    site.cuts = [300_000, 200_000]
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and names(tmp_path) == ["file.bin"]
    assert site.asked == [("/file.bin", None, None), ("/file.bin", "bytes=300000-", '"one"'),
                          ("/file.bin", "bytes=500000-", '"one"')]
    assert capsys.readouterr().err.count("trying again") == 2


def test_what_was_fetched_is_kept_and_the_next_call_goes_on(tmp_path, site):
    site.cuts = [100_000, 50_000, 50_000, 50_000]
    said = failed(remote(site), tmp_path)
    assert "ended after 250,000 of 1,024,000 bytes" in said and "250,000 bytes are kept in file.bin.part" in said
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:250_000]
    site.asked.clear()
    fetch(remote(site), tmp_path)
    assert site.asked == [("/file.bin", "bytes=250000-", '"one"')]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and names(tmp_path) == ["file.bin"]


def test_a_call_that_is_interrupted_goes_on_too(tmp_path, site, monkeypatch):
    """Ctrl-C while it waits for the next try."""
    def interrupt(seconds):
        raise KeyboardInterrupt

    site.cuts = [400_000]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.time, "sleep", interrupt)
        fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size == 400_000
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and site.asked[-1][1] == "bytes=400000-"


def test_half_a_file_of_somebody_elses_download_is_gone_on_with(tmp_path, site):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:600_000])
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and site.asked == [("/file.bin", "bytes=600000-", None)]


def test_a_whole_part_is_only_checked(tmp_path, site):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and len(site.asked) == 1


@pytest.mark.parametrize("how", ["no ranges", "another file by now", "a longer part"])
def test_what_cannot_be_gone_on_with_begins_anew(tmp_path, site, how):
    site.cuts = [300_000]
    site.statuses = [200, 404]
    failed(remote(site), tmp_path)
    old, part = CONTENT[:300_000], tmp_path / "file.bin.part"
    assert part.read_bytes() == old
    if how == "no ranges":
        site.ranges = False
    elif how == "another file by now":
        site.content["/file.bin"], site.etag = CONTENT[::-1], '"two"'
    else:
        part.write_bytes(CONTENT + b"more")
    wanted = site.content["/file.bin"]
    fetch(remote(site, "md5:" + hashlib.md5(wanted).hexdigest()), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == wanted and names(tmp_path) == ["file.bin"]


def test_without_a_hash_two_files_are_never_joined(tmp_path, site):
    """No published hash and no ETag: nothing would show that the file has changed."""
    site.etag, site.cuts, site.statuses = None, [300_000], [200, 404]
    failed(remote(site, ""), tmp_path)
    site.content["/file.bin"] = CONTENT[::-1]
    fetch(remote(site, ""), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[::-1] and site.asked[-1][1] is None


def test_a_server_that_is_busy_is_asked_again_but_not_for_ever(tmp_path, site):
    site.statuses = [503, 429]
    fetch(remote(site), tmp_path)
    (tmp_path / "file.bin").unlink()
    site.asked.clear()
    site.statuses = [503] * 9
    assert "says 503" in failed(remote(site), tmp_path)
    assert len(site.asked) == 4 and names(tmp_path) == []


def test_a_network_that_goes_away_half_way_is_waited_for(tmp_path, site, monkeypatch):
    """The connection breaks, then there is none, then there is one again."""
    real, calls = download.opener, []

    def sometimes():
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return real()

    monkeypatch.setattr(download, "opener", sometimes)
    site.cuts = [300_000]
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and len(calls) == 3


# --- what is refused ---

@pytest.mark.parametrize("resumed", [False, True])
def test_a_wrong_hash_is_named_and_what_came_is_removed(tmp_path, site, resumed):
    if resumed:
        (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    wrong = "md5:" + "0" * 32 if not resumed else MD5
    said = failed(remote(site, wrong), tmp_path, "E-DOWNLOAD-HASH")
    assert "is removed: type the same command again" in said and names(tmp_path) == []
    if not resumed:
        assert MD5[4:] in said and "0" * 32 in said


@pytest.mark.parametrize("length", [True, False])
def test_a_file_that_is_too_large_is_not_fetched_to_its_end(tmp_path, site, length):
    site.length = length
    assert "at most 500,000" in failed(remote(site, most=500_000), tmp_path, "E-DOWNLOAD-HASH")
    assert not (tmp_path / "file.bin").exists()
    assert not length or names(tmp_path) == []


def test_another_file_of_that_name_is_left_alone(tmp_path, site):
    (tmp_path / "file.bin").write_bytes(CONTENT[:50])
    said = failed(remote(site), tmp_path, "E-DOWNLOAD-HASH")
    assert "is there, but incomplete or damaged" in said and "file.bin.part" in said and site.asked == []
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:50]


def test_no_such_file_and_no_network_are_one_line_and_leave_nothing(tmp_path, site, capsys):
    assert "/none says 404" in failed(remote(site, urls=(f"{site.url}/none",)), tmp_path)
    said = failed(remote(site, urls=(f"http://127.0.0.1:{closed_port()}/a",)), tmp_path)
    assert "Connection refused" in said and "http_proxy" in said and capsys.readouterr().err == ""
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "ftp"])
def test_it_is_sent_on_by_http_alone(tmp_path, site, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    site.moved = {"/moved": f"{site.url}/file.bin", "/trap": f"{kind}://{secret}"}
    assert "/trap says 302" in failed(remote(site, urls=(f"{site.url}/trap",)), tmp_path / "data")
    assert names(tmp_path / "data") == []
    fetch(remote(site, urls=(f"{site.url}/moved",)), tmp_path / "data")
    assert (tmp_path / "data/file.bin").read_bytes() == CONTENT


def test_files_of_this_machine_are_no_addresses(tmp_path, site):
    assert "unknown url type" in failed(remote(site, urls=(f"file://{tmp_path}/x",)), tmp_path)


def test_a_second_process_does_not_write_into_the_same_part(tmp_path, site):
    with open(tmp_path / "file.bin.part", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process is fetching" in failed(remote(site), tmp_path, "E-BUSY")
    fetch(remote(site), tmp_path)


def test_a_write_that_fails_half_way_keeps_what_there_is(tmp_path, site):
    """A limit on the size of files stands for a full disk."""
    before, old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write .*file.bin: {os.strerror(errno.EFBIG)}"):
            fetch(remote(site), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:400_000]
    fetch(remote(site), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and site.asked[-1][1] == "bytes=400000-"


def test_a_folder_that_cannot_be_made(tmp_path, site):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        fetch(remote(site), tmp_path / "file" / "data")


# --- no published hash ---

def test_an_unknown_hash_is_said_noted_and_expected_from_then_on(tmp_path, site, capsys):
    fetch(remote(site, ""), tmp_path)
    assert f"its sha256 is {SHA}" in capsys.readouterr().out
    assert (tmp_path / "file.bin.sha256").read_text() == f"{SHA}  file.bin\n"
    fetch(remote(site, ""), tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "file.bin").write_bytes(CONTENT[::-1])
    assert SHA in failed(remote(site, ""), tmp_path, "E-DOWNLOAD-HASH")
    (tmp_path / "file.bin").unlink()
    site.content["/file.bin"] = CONTENT[::-1]                       # the server's has changed
    assert SHA in failed(remote(site, ""), tmp_path, "E-DOWNLOAD-HASH")


# --- proxies and certificates ---

@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_proxy_of_the_environment_is_used(tmp_path, site, monkeypatch, name):
    """The proxy is asked with the whole address, and the host itself does not exist."""
    site.content["http://nowhere.invalid/file.bin"] = CONTENT
    monkeypatch.setenv(name, site.url)
    file = remote(site, urls=("http://nowhere.invalid/file.bin",))
    fetch(file, tmp_path)
    assert site.asked == [("http://nowhere.invalid/file.bin", None, None)]
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    (tmp_path / "file.bin").unlink()
    failed(file, tmp_path)
    assert len(site.asked) == 1


def test_certificates_of_the_environment(tmp_path, site, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert "REQUESTS_CA_BUNDLE=" in failed(remote(site), tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))          # a folder of certificates
    fetch(remote(site), tmp_path)
