"""The fetcher against a real server on loopback and a resolver that says what the test wants."""

from __future__ import annotations

import gzip
import ipaddress
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common import fetching
from common.fetching import (
    Fetched,
    FetchError,
    FetchForbiddenError,
    FetchPolicy,
    downloading,
    fetch,
    is_public,
    target_of,
)
from tests.services import missing

SERVED = "127.0.0.2"
"""Where the test's server listens; the only private address the test's policy opens."""
PICTURE = b"\x89PNG picture"


@dataclass
class Pictures:
    """A server, and what it was asked."""

    port: int = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    addresses: dict[str, list[list[str]]] = field(default_factory=dict)
    """Host → the addresses of each look-up; the last one stays."""

    def resolver(self, host: str, port: int) -> list[str]:
        self.names.append(host)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            answers = self.addresses.get(host, [[SERVED]])
            return answers.pop(0) if len(answers) > 1 else answers[0]
        return [host]

    @property
    def policy(self) -> FetchPolicy:
        own = (ipaddress.ip_network(f"{SERVED}/32"),)
        return FetchPolicy(hosts=("*",), private_networks=own, ports=frozenset({80, 443, self.port}), seconds=100)

    def get(self, path: str = "/picture.png", *, host: str = "pictures.example", **policy: object) -> Fetched:
        return self.get_url(f"http://{host}:{self.port}{path}", **policy)

    def get_url(self, url: str, **policy: object) -> Fetched:
        return fetch(url, policy=replace(self.policy, **policy), resolver=self.resolver)


class Handler(BaseHTTPRequestHandler):
    pictures: Pictures

    def do_GET(self) -> None:
        self.pictures.asked.append((self.path, dict(self.headers)))
        kind, _, rest = self.path[1:].partition("/")
        getattr(self, f"do_{kind.partition('.')[0]}")(rest)

    def do_picture(self, _: str, data: bytes = PICTURE, **headers: str) -> None:
        self.send_response(200)
        said = {"Content_Type": "image/png", "Content_Length": str(len(data)), **headers}
        for name, value in said.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_redirect(self, where: str) -> None:
        code, _, location = where.partition("/")
        self.send_response(int(code))
        self.send_header("Location", location)
        self.end_headers()

    def do_again(self, left: str) -> None:
        self.do_redirect(f"302//again/{int(left) - 1}" if int(left) else "302//picture.png")

    def do_part(self, said: str) -> None:
        """Status and Content-Range as the test wants them, four bytes after them."""
        status, _, span = said.partition("/")
        self.send_response(int(status))
        for name, value in (("Content-Range", span.replace("_", " ")), ("Content-Length", "4")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"tail")

    def do_endless(self, _: str) -> None:
        """No length is said, so that only counting helps."""
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(10_000))
        except OSError:
            pass

    def do_huge(self, _: str) -> None:
        self.do_picture("", b"x", Content_Length="30000000")

    def do_drip(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self._until_left(b"x")

    def do_silent(self, _: str) -> None:
        self.do_picture("", b"x", Content_Length="10")
        self._until_left(b"")

    def do_dripping_head(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        self._until_left(b"x")

    def _until_left(self, drop: bytes) -> None:
        """A drop now and then, or nothing, for as long as somebody waits for more: it is never the server that ends it."""
        self.connection.settimeout(0.05)
        while True:
            try:
                self.wfile.write(drop)
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def do_short(self, _: str) -> None:
        self.do_picture("", b"x" * 5, Content_Length="10")

    def do_longer(self, _: str) -> None:
        self.do_picture("", b"1234567890", Content_Length="5")

    def do_packed(self, _: str) -> None:
        self.do_picture("", gzip.compress(bytes(1_000_000)), Content_Encoding="gzip")

    def do_page(self, _: str) -> None:
        self.do_picture("", b"<html>", Content_Type="text/html")

    def do_octets(self, _: str) -> None:
        self.do_picture("", Content_Type="application/octet-stream")

    def do_gone(self, _: str) -> None:
        self.send_error(404)

    def do_nonsense(self, _: str) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer((SERVED, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pictures(server) -> Pictures:
    Handler.pictures = Pictures(port=server.server_address[1])
    return Handler.pictures


def test_a_picture_is_fetched_with_nothing_but_its_address(pictures):
    assert pictures.get("/picture.png?x=1&y=ü") == Fetched(PICTURE, "image/png")
    ((path, headers),) = pictures.asked
    assert path == "/picture.png?x=1&y=%C3%BC" and headers["Host"] == f"pictures.example:{pictures.port}"
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_nothing_is_fetched_where_the_installation_names_no_host(pictures):
    with pytest.raises(FetchForbiddenError, match="not fetched by this server"):
        pictures.get(hosts=())
    assert pictures.names == []


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        (("pictures.example",), "pictures.example", True),
        (("pictures.example",), "PICTURES.example.", True),
        (("pictures.example",), "evil-pictures.example", False),
        (("pictures.example",), "pictures.example.evil.com", False),
        (("*.example",), "a.b.example", True),
        (("*.example",), "example", False),
        (("*.example",), "badexample", False),
        (("bücher.example".encode("idna").decode(),), "BÜCHER.example", True),
    ],
)
def test_only_hosts_of_the_allow_list_are_fetched_from(hosts, host, allowed):
    policy = FetchPolicy(hosts=hosts)
    if allowed:
        target_of(f"https://{host}/a.png", policy)
    else:
        with pytest.raises(FetchForbiddenError, match="not among those"):
            target_of(f"https://{host}/a.png", policy)


WRONG_URLS = {
    "a file": "file:///etc/passwd",
    "ftp": "ftp://pictures.example/a",
    "gopher": "gopher://pictures.example/_GET",
    "data": "data:image/png;base64,AAAA",
    "no scheme": "//pictures.example/a",
    "no host": "http:///a",
    "a user": "http://ada@pictures.example/a",
    "a user and a password": "http://ada:secret@pictures.example/a",
    "an allowed host as user": "http://pictures.example@127.0.0.1/a",
    "a coded at sign": "http://pictures.example%40127.0.0.1/a",
    "a backslash": "http://pictures.example\\@127.0.0.1/a",
    "a hash before the host": "http://127.0.0.1\\#@pictures.example/",
    "a space": "http://pictures.example /a",
    "a line break": "http://pictures.example/a\r\nX-Evil: 1",
    "a NUL": "http://pictures.example/a\x00",
    "a tab": "http://pict\tures.example/a",
    "port of ssh": "http://pictures.example:22/a",
    "port of redis": "http://pictures.example:6379/a",
    "port 0": "http://pictures.example:0/a",
    "no port number": "http://pictures.example:http/a",
    "port too large": "http://pictures.example:99999/a",
    "decimal": "http://2130706433/a",
    "hex": "http://0x7f000001/a",
    "hex in parts": "http://0x7f.0x0.0x0.0x1/a",
    "octal": "http://0177.0.0.1/a",
    "short": "http://127.1/a",
    "leading zeros": "http://127.000.000.001/a",
    "fullwidth digits": "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11:6379/a",
    "circled digits": "http://①②⑦.⓪.⓪.①:6379/a",
    "a zone": "http://[fe80::1%25eth0]/a",
    "too long": "http://pictures.example/" + "a" * 3000,
    "half a bracket": "http://[::1/a",
}


@pytest.mark.parametrize("url", WRONG_URLS.values(), ids=WRONG_URLS)
def test_an_address_that_could_be_misread_is_refused_before_any_lookup(pictures, url):
    with pytest.raises(FetchForbiddenError):
        fetch(url, policy=FetchPolicy(hosts=("*",)), resolver=pictures.resolver)
    assert pictures.names == [] and pictures.asked == []


NOT_PUBLIC = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200",
    "169.254.169.254", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254",
    "168.63.129.16", "192.0.0.192", "fd20:ce::254", "3fff::1", "5f00::1", "::ffff:0:127.0.0.1", "::ffff:7f00:1",
    "ff02::1", "2001:db8::1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::1", "2001:0:7f00:1::", "100::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_as_a_literal_and_behind_a_name(pictures, address):
    assert not pictures.policy.allows_address(ipaddress.ip_address(address))
    literal = f"[{address}]" if ":" in address else address
    pictures.addresses["name.example"] = [[address]]
    for host in (literal, "name.example"):
        with pytest.raises(FetchForbiddenError, match="fetches nothing from"):
            pictures.get(host=host)
    assert pictures.asked == []


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_name_with_one_private_address_among_public_ones_is_refused(pictures):
    pictures.addresses["name.example"] = [["8.8.8.8", "10.0.0.1"]]
    with pytest.raises(FetchForbiddenError):
        pictures.get(host="name.example")


SECRETS = [
    "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "[fd00:ec2::254]", "[fd20:ce::254]",
    "[::ffff:169.254.169.254]", "[::a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[2002:a9fe:a9fe::]",
]  # fmt: skip


@pytest.mark.parametrize("host", SECRETS)
def test_no_setting_opens_the_address_where_a_cloud_tells_secrets(pictures, host):
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    with pytest.raises(FetchForbiddenError):
        pictures.get(host=host, private_networks=everything)
    assert pictures.asked == []


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_asked(pictures, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert pictures.get().data == PICTURE


def test_an_answer_ends_where_it_says_it_does(pictures):
    assert pictures.get("/longer").data == b"12345"


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(pictures):
    """DNS rebinding: the second answer would be another place."""
    pictures.addresses["rebinding.example"] = [[SERVED], ["127.0.0.1"]]
    assert pictures.get(host="rebinding.example").data == PICTURE
    assert pictures.names == ["rebinding.example"]


def test_a_name_that_changes_between_two_urls_is_checked_again(pictures):
    pictures.addresses["rebinding.example"] = [[SERVED], ["127.0.0.1"]]
    with pytest.raises(FetchForbiddenError):
        pictures.get("/redirect/302//picture.png", host="rebinding.example")
    assert len(pictures.asked) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(pictures, code):
    assert pictures.get(f"/redirect/{code}//picture.png").data == PICTURE


def test_three_redirects_are_followed_and_a_fourth_is_not(pictures):
    assert pictures.get("/again/2").data == PICTURE
    with pytest.raises(FetchError, match="more than 3 times"):
        pictures.get("/again/3")
    with pytest.raises(FetchError, match="more than 3 times"):
        pictures.get("/redirect/302/")


WRONG_TURNS = ["http://127.0.0.1:{port}/picture.png", "http://localhost.example:{port}/", "http://[::1]:{port}/", "file:///etc/passwd",
               "http://2130706433:{port}/", "http://ada:secret@pictures.example:{port}/picture.png", "//10.0.0.1:{port}/",
               "http://169.254.169.254/latest/meta-data/", "http://pictures.example:22/"]  # fmt: skip


@pytest.mark.parametrize("location", WRONG_TURNS)
def test_a_redirect_is_checked_like_the_first_address(pictures, location):
    pictures.addresses["localhost.example"] = [["127.0.0.1"]]
    with pytest.raises(FetchForbiddenError):
        pictures.get("/redirect/302/" + location.format(port=pictures.port))
    assert len(pictures.asked) == 1


def test_a_redirect_beyond_the_allow_list_is_refused(pictures):
    with pytest.raises(FetchForbiddenError, match="not among"):
        pictures.get(f"/redirect/302/http://other.example:{pictures.port}/picture.png", hosts=("pictures.example",))


@pytest.mark.parametrize("path", ["/huge", "/endless"])
def test_too_much_is_cut_off_while_it_comes(pictures, path):
    with pytest.raises(FetchError, match="exceeds 100000 bytes"):
        pictures.get(path, max_bytes=100_000)


@pytest.mark.parametrize("path", ["/drip", "/dripping_head"])
def test_an_answer_that_drips_ends_at_the_limit_for_everything(pictures, path):
    with pytest.raises(FetchError, match="too long"):
        pictures.get(path, seconds=0.4)


def test_a_name_that_nobody_answers_ends_at_the_limit(pictures):
    release = threading.Event()
    policy = FetchPolicy(hosts=("*",), seconds=0.2)
    try:
        with pytest.raises(FetchError, match="too long"):
            fetch("http://slow.example/", policy=policy, resolver=lambda *_: release.wait())
    finally:
        release.set()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/packed", "compressed"),
        ("/page", "content type"),
        ("/gone", "status 404"),
        ("/short", "ended early"),
        ("/nonsense", "could not be fetched"),
    ],
)
def test_an_answer_that_is_not_a_whole_picture_is_refused(pictures, path, reason):
    with pytest.raises(FetchError, match=reason):
        pictures.get(path)


def test_octets_may_be_a_picture(pictures):
    assert pictures.get("/octets").data == PICTURE


def test_https_to_a_server_without_a_certificate_fails_plainly(pictures):
    with pytest.raises(FetchError, match="certificate or encryption|could not be fetched"):
        pictures.get_url(f"https://pictures.example:{pictures.port}/picture.png")


@pytest.fixture(scope="module")
def encrypted(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the same server behind TLS, with a certificate for pictures.example; only the fixture's context trusts it."""
    program = shutil.which("openssl") or missing("openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [str(program), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=DNS:pictures.example", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    behind = ThreadingHTTPServer((SERVED, 0), Handler)
    behind.daemon_threads = True
    behind.socket = context.wrap_socket(behind.socket, server_side=True)
    thread = threading.Thread(target=behind.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_tls", lambda: ssl.create_default_context(cafile=certificate))
        yield behind.server_address[1]
    behind.shutdown()
    thread.join()
    behind.server_close()


def test_https_goes_to_the_checked_address_and_the_certificate_is_the_names(pictures, encrypted):
    ports = frozenset({encrypted})
    assert pictures.get_url(f"https://pictures.example:{encrypted}/picture.png", ports=ports).data == PICTURE
    with pytest.raises(FetchError, match="certificate"):
        pictures.get_url(f"https://other.example:{encrypted}/picture.png", ports=ports)
    assert pictures.names == ["pictures.example", "other.example"] and len(pictures.asked) == 1


def test_an_unknown_name_and_a_closed_port_are_told_without_details(pictures):
    pictures.addresses["unknown.example"] = [[]]
    with pytest.raises(FetchError, match="host is unknown"):
        pictures.get(host="unknown.example")
    with pytest.raises(FetchError) as closed:
        pictures.get_url("http://pictures.example:81/", ports=frozenset({81}))
    assert SERVED not in str(closed.value)


# --- piece by piece ---------------------------------------------------------------------------------------------------


def download(pictures: Pictures, path: str, *, first_byte: int = 0, **policy: object) -> tuple[int, int, bytes]:
    address = f"http://pictures.example:{pictures.port}{path}"
    asked = downloading(
        address, policy=replace(pictures.policy, **policy), first_byte=first_byte, resolver=pictures.resolver
    )
    with asked as found:
        return found.begins, found.size_bytes, b"".join(iter(lambda: found.read(5), b""))


def test_a_stream_is_read_to_its_end(pictures):
    assert download(pictures, "/picture.png") == (0, len(PICTURE), PICTURE)


def test_a_stream_goes_on_where_it_was_left(pictures):
    assert download(pictures, "/part/206/bytes_8-11/12", first_byte=8) == (8, 12, b"tail")
    assert pictures.asked[-1][1]["Range"] == "bytes=8-"


def test_a_server_that_gives_the_whole_instead_is_told_by_where_it_begins(pictures):
    assert download(pictures, "/picture.png", first_byte=8) == (0, len(PICTURE), PICTURE)


@pytest.mark.parametrize(
    "said",
    ["206/bytes_0-11/12", "206/bytes_7-11/12", "206/bytes_8-10/12", "206/bytes_8-11/*", "206/", "206/bytes_8-99/100"],
)
def test_another_part_than_the_one_asked_for_is_refused(pictures, said):
    with pytest.raises(FetchError, match="another part"):
        download(pictures, f"/part/{said}", first_byte=8)


def test_a_part_that_was_not_asked_for_is_refused(pictures):
    with pytest.raises(FetchError, match="status 206"):
        download(pictures, "/part/206/bytes_8-11/12")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short", "ended early"),
        ("/endless", "how long"),
        ("/huge", "exceeds"),
        ("/packed", "compressed"),
        ("/page", "content type"),
        ("/gone", "status 404"),
        ("/nonsense", "could not"),
        ("/redirect/302/file:///etc/passwd", "http and https"),
    ],
)
def test_a_stream_has_the_limits_of_everything_fetched(pictures, path, reason):
    with pytest.raises(FetchError, match=reason):
        download(pictures, path)


def test_s14_a_redirect_of_a_stream_is_checked_again(pictures):
    pictures.addresses["inside.example"] = [["127.0.0.1"]]
    with pytest.raises(FetchForbiddenError):
        download(pictures, f"/redirect/302/http://inside.example:{pictures.port}/picture.png")


def test_a_server_that_falls_silent_is_given_up_however_long_the_whole_may_take(pictures):
    with pytest.raises(FetchError, match="too long"):
        download(pictures, "/silent", seconds=3600, idle_seconds=0.2)


def test_a_whole_that_drips_is_given_up_at_the_deadline(pictures):
    with pytest.raises(FetchError, match="too long"):
        download(pictures, "/drip", seconds=0.5, idle_seconds=0.3)


def test_what_the_reader_of_a_stream_does_wrong_is_its_own(pictures):
    address = f"http://pictures.example:{pictures.port}/picture.png"
    with (
        pytest.raises(OSError, match="disk full"),
        downloading(address, policy=pictures.policy, resolver=pictures.resolver),
    ):
        raise OSError("disk full")
