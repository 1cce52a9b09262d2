"""The HTTP client behind an endpoint: no reply is longer, later or from elsewhere than what was asked for.

It is the `openai` package's own client with another `send`: the body is read up to so many bytes, all of a request's
steps together take so many seconds (the package's own limit counts anew with each byte that comes), all attempts for
one answer twice as many, and a redirect is followed on the same server alone: picture and question go nowhere else.
"""

import concurrent.futures
import contextlib
import importlib
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

http: Any
Client: Any
try:
    import openai
except ImportError:  # Endpoint.of says which package that is
    http, Client = None, object
else:
    Client = openai.DefaultHttpxClient
    http = importlib.import_module(Client.__mro__[1].__module__.partition(".")[0])  # httpx, or its heir

ATTEMPTS = 2  # that may take all of a request's seconds, for one answer
REDIRECTS = 5  # on the same server
MOST_LISTED = 4_000_000  # bytes of a reply that is no answer: a hosted server's list of its models
PASSED_ON = ("content-type", "retry-after", "retry-after-ms", "x-should-retry")
ZIPPED = ("gzip", "x-gzip", "deflate")


class BoundedClient(Client):
    """An HTTP client whose replies are whole in memory when they are given, and bounded.

    What was bounded is said in a response's `extensions`: {"cut": True} where its body was longer, {"late": True} with
    status 408 where the time is over, {"elsewhere": host} where it is a redirect to another server.

    Args:
        seconds: for one request, from the first look for its address to the last byte.
        connecting: seconds for a connection.
    """

    def __init__(self, seconds: float, connecting: float):
        super().__init__(timeout=openai.Timeout(seconds, connect=connecting), headers={"Accept-Encoding": "identity"})
        self.seconds = seconds
        self._here = threading.local()

    @contextlib.contextmanager
    def one_answer(self, most_bytes: int, seconds: float | None = None) -> Iterator[None]:
        """While it lasts, this thread's requests are attempts for one answer, of so many bytes at most.

        Args:
            seconds: for all attempts; default: ATTEMPTS times those of a request.
        """
        before = getattr(self._here, "bounds", None)
        self._here.bounds = most_bytes, time.monotonic() + (seconds or ATTEMPTS * self.seconds)
        try:
            yield
        finally:
            self._here.bounds = before

    def send(self, request: Any, **_: Any) -> Any:
        """The response to a request, read to its end or its bound.

        Raises what the library raises, its ReadTimeout where the time is over but another attempt may be made.
        """
        bounds = getattr(self._here, "bounds", None)
        most, until = bounds or (MOST_LISTED, time.monotonic() + self.seconds)
        left = min(self.seconds, until - time.monotonic())
        found: concurrent.futures.Future = concurrent.futures.Future()
        given_up = threading.Event()

        def attempt() -> None:
            try:
                found.set_result(self._received(request, most, given_up))
            except BaseException as error:
                found.set_exception(error)

        if left > 0:
            # a thread of its own, for whoever waits for a byte can only be left waiting
            threading.Thread(target=attempt, daemon=True).start()
            concurrent.futures.wait([found], left)
        if not found.done():
            given_up.set()
            if until - time.monotonic() > 0.1 * self.seconds:
                raise http.ReadTimeout("no whole reply in time", request=request)
            return http.Response(408, headers={"x-should-retry": "false"}, request=request, extensions={"late": True})
        response = found.result()
        if time.monotonic() > until:
            response.headers["x-should-retry"] = "false"
        return response

    def _received(self, request: Any, most: int, given_up: threading.Event) -> Any:
        for _ in range(REDIRECTS):
            response = super().send(request, stream=True, follow_redirects=False)
            onward = response.next_request
            if onward is None:
                break
            response.close()
            if _origin(onward.url) != _origin(request.url):
                where = {"elsewhere": f"{onward.url.scheme}://{onward.url.host}"}
                return http.Response(response.status_code, request=request, extensions=where)
            request = onward
        else:
            raise http.TooManyRedirects(f"it sends on more than {REDIRECTS} times", request=request)
        try:
            body, cut = _body(response, most, given_up)
        finally:
            response.close()
        headers = {name: response.headers[name] for name in PASSED_ON if response.headers.get(name, "\xff").isascii()}
        if "content-type" in headers:  # without the name of an encoding, which may be none
            headers["content-type"] = headers["content-type"].partition(";")[0]
        bounded = {"cut": True} if cut else {}
        return http.Response(response.status_code, headers=headers, content=body, request=request, extensions=bounded)


def _body(response: Any, most: int, given_up: threading.Event) -> tuple[bytes, bool]:
    """The first so many bytes of a body, unpacked, and whether there are more."""
    zipped = response.headers.get("content-encoding", "").strip().lower() in ZIPPED
    unzip = zlib.decompressobj(47) if zipped else None
    body = bytearray()
    for chunk in response.iter_raw():
        if given_up.is_set():
            raise http.ReadTimeout("given up", request=response.request)
        try:
            body += unzip.decompress(chunk, most + 1 - len(body)) if unzip else chunk
        except zlib.error:
            raise http.DecodingError("a body that is not packed as its header says", request=response.request) from None
        if len(body) > most:
            return bytes(body[:most]), True
    return bytes(body), False


def _origin(url: Any) -> tuple:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
