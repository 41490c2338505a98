"""Fetching what a caller's URL names, whole or piece by piece. The only place that connects to an address somebody else chose.

A URL is untrusted in every part: its scheme, its host (decimal, hex, look-alikes), what the host's name resolves to now and a
moment later, where the answer redirects to, how much comes and how slowly. So a name is resolved once, every address it has is
checked, the connection goes to the checked address and to no other, and each redirect is a new URL. Nothing of the caller's request
(token, cookies, proxy) goes along. What the answer means is the caller's business.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from django.conf import settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]
"""Host and port → addresses."""

ANY_HOST = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}
USER_AGENT = "renderkiln-fetch/1.0"
MAX_URL = 2048
READ_BYTES = 65_536
REDIRECTS = (301, 302, 303, 307, 308)
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
DOTTED = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
METADATA = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16", "fe80::/10", "100.100.100.200/32",  # most clouds, Alibaba
        "168.63.129.16/32", "192.0.0.192/32",  # Azure, although it is a public address, and Oracle
        "fd00:ec2::/32", "fd20:ce::/32",  # Amazon, Google
    )
)  # fmt: skip
"""Where clouds tell a machine its own secrets; no setting opens them."""
SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16",  # compatible, NAT64, Teredo, 6to4
        "192.88.99.0/24", "192.0.0.0/24", "fec0::/10",  # 6to4 relays, protocol assignments, site-local
        "3fff::/20",  # documentation
    )
)  # fmt: skip
"""Refused although the standard library calls parts of them global: gateways to an IPv4 address inside, and old private ones."""


LAST_BITS = tuple(ipaddress.ip_network(text) for text in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48"))
"""IPv6 networks whose addresses end in one of IPv4."""


class FetchError(Exception):
    """Nothing was fetched. The message holds no address and nothing of the answer, so it may be shown to the caller."""


class FetchForbiddenError(FetchError):
    """The URL is one that is not fetched here, whatever answers it."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What an installation lets its callers have fetched."""

    hosts: tuple[str, ...] = ()
    """``*`` for every public host, names, ``*.name`` for what lies below one; empty: nothing is fetched."""
    private_networks: tuple[Network, ...] = ()
    """Networks of the installation's own that may be reached although they are not public."""
    ports: frozenset[int] = frozenset(DEFAULT_PORTS.values())
    max_bytes: int = 20_000_000
    seconds: float = 10.0
    """For everything together: name, connections, redirects, and the last byte."""
    idle_seconds: float | None = None
    """For each wait, where ``seconds`` is long: a server that says nothing for so long is given up."""
    max_redirects: int = 3
    content_types: tuple[str, ...] = ("image/", "application/octet-stream", "binary/octet-stream")
    """What the answer may call itself, by its beginning; saying nothing is allowed."""
    source_address: str = ""
    """Local address the connections leave from, so that a firewall can tell them apart."""

    @property
    def enabled(self) -> bool:
        return bool(self.hosts)

    def allows_host(self, host: str) -> bool:
        return any(
            rule in (ANY_HOST, host) or (rule.startswith("*.") and host.endswith(rule[1:])) for rule in self.hosts
        )

    def allows_address(self, address: Address) -> bool:
        inside = _embedded(address)
        if any(one in network for network in METADATA for one in (address, inside) if one is not None):
            return False
        return is_public(address) or any(address in network for network in self.private_networks)


def policy_installed() -> FetchPolicy:
    """What the settings of this installation say."""
    return FetchPolicy(
        hosts=tuple(settings.FETCH_HOSTS),
        private_networks=tuple(settings.FETCH_PRIVATE_NETWORKS),
        ports=frozenset(settings.FETCH_PORTS),
        source_address=settings.FETCH_SOURCE_ADDRESS,
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was looked at: where to connect, and what to ask there."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class Fetched:
    data: bytes
    content_type: str


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def fetch(url: str, *, policy: FetchPolicy, resolver: Resolver = resolve) -> Fetched:
    """Get what a URL names.

    Args:
        resolver: Asked once per URL, on a thread of its own.
    Raises:
        FetchForbiddenError: The URL, or one it redirects to, is not fetched here.
        FetchError: It cannot be had, or it is too large, too slow, or of another kind.
    """
    deadline = time.monotonic() + policy.seconds
    with ExitStack() as stack, _failures_told():
        return _body(_final_answer(stack, url, policy, resolver, deadline, {}), policy)


@dataclass(slots=True)
class Download:
    """An answer that is read piece by piece."""

    begins: int
    """Of the file, which byte comes first: the one asked for, or 0 where the server gives the whole only."""
    size_bytes: int
    """Of the whole file."""
    version: str
    """What the server calls this state of the file; empty when it says nothing. A part is asked for with it."""
    _answer: http.client.HTTPResponse

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than ``size`` at the end only.

        Raises:
            FetchError: They cannot be had.
        """
        pieces, missing = [], size
        with _failures_told():
            while missing and (piece := self._answer.read1(min(missing, READ_BYTES))):
                pieces.append(piece)
                missing -= len(piece)
        if missing and self._answer.length:
            raise FetchError("The address's answer ended early.")
        return b"".join(pieces)


@contextmanager
def downloading(
    url: str, *, policy: FetchPolicy, first_byte: int = 0, version: str = "", resolver: Resolver = resolve
) -> Iterator[Download]:
    """What a URL names as a stream; the connection lasts as long as the context.

    Args:
        first_byte: Where to go on; with ``version`` the server gives the whole file when it is another one by now.
    Raises:
        FetchForbiddenError, FetchError: As ``fetch``.
    """
    deadline = time.monotonic() + policy.seconds
    wanted = {"Range": f"bytes={first_byte}-"} if first_byte else {}
    if first_byte and version:
        wanted["If-Range"] = version
    with ExitStack() as stack:
        with _failures_told():
            answer = _final_answer(stack, url, policy, resolver, deadline, wanted)
            download = _download(answer, policy, first_byte)
        yield download


# --- the URL ----------------------------------------------------------------------------------------------------------


def target_of(url: str, policy: FetchPolicy) -> Target:
    """Take a URL apart, strictly: what two readers could understand differently is refused.

    Raises:
        FetchForbiddenError: It is none that is fetched here.
    """
    if not policy.enabled:
        raise FetchForbiddenError("Addresses are not fetched by this server.")
    parts = _split(url)
    if parts.scheme not in DEFAULT_PORTS:
        raise FetchForbiddenError("Only http and https addresses are fetched.")
    if "@" in parts.netloc:
        raise FetchForbiddenError("An address must not hold a user name or password.")
    host = _plain_host(parts.hostname or "")
    try:
        port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        raise FetchForbiddenError("The address has no usable port.") from None
    if port not in policy.ports:
        raise FetchForbiddenError(f"Port {port} is not fetched from.")
    if not policy.allows_host(host):
        raise FetchForbiddenError("The address's host is not among those this server fetches from.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # Beyond ASCII a path is sent as its UTF-8, percent-encoded, as browsers do.
    path = "".join(char if char.isascii() else "".join(f"%{byte:02X}" for byte in char.encode()) for char in path)
    return Target(parts.scheme, host, port, path)


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL or "\\" in url or any(char <= " " or char == "\x7f" for char in url):
        raise FetchForbiddenError(
            f"An address has at most {MAX_URL} characters, no spaces, backslashes or control characters."
        )
    try:
        return urlsplit(url)
    except ValueError:
        raise FetchForbiddenError("The address is malformed.") from None


def _plain_host(host: str) -> str:
    """In lower case ASCII without a dot at its end; an IP address only in its usual form.

    Raises:
        FetchForbiddenError: It is none, or a number in disguise.
    """
    if ":" in host:
        if "%" in host:
            raise FetchForbiddenError("The address's host is malformed.")
        return _as_address(host)
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise FetchForbiddenError("The address's host is malformed.") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise FetchForbiddenError("The address's host is malformed.")
    if NUMBER.fullmatch(labels[-1]):
        # Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1.
        if not DOTTED.fullmatch(name):
            raise FetchForbiddenError("The address's host is a number; write it as a.b.c.d.")
        return _as_address(name)
    return name


def _as_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise FetchForbiddenError("The address's host is malformed.") from None


# --- where it leads ---------------------------------------------------------------------------------------------------


def is_public(address: Address) -> bool:
    """Whether it is an address of the public internet, by what is registered for special purposes."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if any(address in network for network in SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a gateway finds in an IPv6 one: mapped, compatible, NAT64, 6to4."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in LAST_BITS):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def checked_address(target: Target, policy: FetchPolicy, resolver: Resolver, deadline: float) -> str:
    """The address to connect to. One that is not allowed among several refuses them all: a host cannot hide behind another.

    Raises:
        FetchForbiddenError: It leads to where nothing is fetched.
        FetchError: The name is unknown, or not answered in time.
    """
    asked = _lookups().submit(resolver, target.host, target.port)
    try:
        found = asked.result(timeout=_patience(policy, deadline))
    except FutureTimeoutError:
        asked.cancel()
        raise FetchError("The address took too long.") from None
    except (OSError, UnicodeError):
        found = ()
    addresses = [_unmapped(ipaddress.ip_address(text)) for text in found]
    if not addresses:
        raise FetchError("The address's host is unknown.")
    if not all(policy.allows_address(address) for address in addresses):
        raise FetchForbiddenError("The address leads to where this server fetches nothing from.")
    return str(addresses[0])


def _patience(policy: FetchPolicy, deadline: float) -> float:
    """Seconds that the next wait may last."""
    left = max(0.001, deadline - time.monotonic())
    return left if policy.idle_seconds is None else min(left, policy.idle_seconds)


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@cache
def _lookups() -> ThreadPoolExecutor:
    """The system's resolver knows no time limit; however slow a name is, it occupies one of these threads and no other."""
    return ThreadPoolExecutor(max_workers=8, thread_name_prefix="lookup")


# --- the exchange -----------------------------------------------------------------------------------------------------


class _TimedSocket:
    """What ``http.client`` needs of a socket; every operation ends at the deadline, however slowly bytes drip."""

    def __init__(self, plain: socket.socket, deadline: float, idle_seconds: float | None) -> None:
        self._socket = plain
        self._deadline = deadline
        self._idle_seconds = idle_seconds

    def remaining(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if self._idle_seconds is None else min(left, self._idle_seconds)

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self.remaining())
        self._socket.sendall(data)

    def receive(self, buffer: Any) -> int:
        self._socket.settimeout(self.remaining())
        return self._socket.recv_into(buffer)

    def makefile(self, mode: str, *_: Any) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_TimedReader(self))

    def close(self) -> None:
        """The socket is closed by who opened it: ``http.client`` lets go of it before the answer is read."""


class _TimedReader(io.RawIOBase):
    def __init__(self, timed: _TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive(buffer)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextmanager
def _connected(
    target: Target, address: str, policy: FetchPolicy, deadline: float
) -> Iterator[http.client.HTTPConnection]:
    """A connection to the checked address; the name is only said to the server and compared with its certificate."""
    source = (policy.source_address, 0) if policy.source_address else None
    left = _patience(policy, deadline)
    with socket.create_connection((address, target.port), timeout=left, source_address=source) as plain:
        plain.settimeout(_patience(policy, deadline))
        with _tls().wrap_socket(plain, server_hostname=target.host) if target.scheme == "https" else plain as usable:
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = _TimedSocket(usable, deadline, policy.idle_seconds)  # type: ignore[assignment]
            yield connection


def _final_answer(
    stack: ExitStack, url: str, policy: FetchPolicy, resolver: Resolver, deadline: float, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """The answer at the end of the redirects; its connection is closed with the stack."""
    for _ in range(policy.max_redirects + 1):
        target = target_of(url, policy)
        address = checked_address(target, policy, resolver, deadline)
        connection = stack.enter_context(_connected(target, address, policy, deadline))
        answer = _answer(connection, target, headers)
        if answer.status not in REDIRECTS:
            return answer
        url = urljoin(target.url, answer.headers.get("Location", ""))
    raise FetchError(f"The address redirects more than {policy.max_redirects} times.")


@contextmanager
def _failures_told() -> Iterator[None]:
    """Raises: FetchError: For whatever the network or the server did."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(_reason(error)) from error


def _answer(
    connection: http.client.HTTPConnection, target: Target, headers: dict[str, str]
) -> http.client.HTTPResponse:
    connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
    for name, value in (
        ("Host", target.authority),
        ("User-Agent", USER_AGENT),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        *headers.items(),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def _accepted_kind(answer: http.client.HTTPResponse, policy: FetchPolicy, statuses: tuple[int, ...]) -> str:
    """Raises: FetchError: It is not what was asked for, or too much of it."""
    if answer.status not in statuses:
        raise FetchError(f"The address was answered with status {answer.status}.")
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        # Unpacking it could make a little much; nobody asked for it to be packed.
        raise FetchError("The address's answer is compressed.")
    kind = answer.headers.get("Content-Type", "").strip().lower()
    if kind and not kind.startswith(policy.content_types):
        raise FetchError("The address's answer has another content type than an accepted one.")
    if (answer.length or 0) > policy.max_bytes:
        raise _too_large(policy)
    return kind


def _too_large(policy: FetchPolicy) -> FetchError:
    return FetchError(f"The address's answer exceeds {policy.max_bytes} bytes.")


def _body(answer: http.client.HTTPResponse, policy: FetchPolicy) -> Fetched:
    """Raises: FetchError: It is not what was asked for, or too much of it."""
    kind = _accepted_kind(answer, policy, (200,))
    data = bytearray()
    while part := answer.read1(READ_BYTES):
        data += part
        if len(data) > policy.max_bytes:
            raise _too_large(policy)
    if answer.length:
        raise FetchError("The address's answer ended early.")
    return Fetched(bytes(data), kind)


def _download(answer: http.client.HTTPResponse, policy: FetchPolicy, first_byte: int) -> Download:
    """Raises: FetchError: It is not what was asked for, too much of it, or of a size that is not said."""
    _accepted_kind(answer, policy, (200, 206) if first_byte else (200,))
    if answer.length is None:
        raise FetchError("The address's answer does not say how long it is.")
    # A weak tag stands for files that differ in bytes.
    tag = answer.headers.get("ETag", "")
    version = tag if tag.startswith('"') else ""
    if answer.status == 200:
        return Download(0, answer.length, version, answer)
    span = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if span is None or int(span[1]) != first_byte or int(span[2]) + 1 != int(span[3]):
        raise FetchError("The address's answer is another part than the one asked for.")
    size = int(span[3])
    if size > policy.max_bytes:
        raise _too_large(policy)
    if answer.length != size - first_byte:
        raise FetchError("The address's answer is another part than the one asked for.")
    return Download(first_byte, size, version, answer)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "The address took too long."
    if isinstance(error, ssl.SSLError):
        return "The address's certificate or encryption cannot be used."
    return "The address could not be fetched."
