"""Models behind an OpenAI-compatible server: a vLLM server, `transformers serve`, a hosted model.

    http://localhost:8000/v1#google/gemma-3-12b-it
    https://example.org/v1?key=MY_KEY&price_in=0.1&price_out=0.4&batch_size=16#org/large

The `openai` package sends the requests, `batch_size` of them at once, and tries again, each time after a longer pause,
what failed for a reason that may pass. A picture goes along as PNG, so that no pixel changes on the way; photographs
are large in it, and `?max_pixels=` makes them smaller.

A key is read from the environment variable that `?key=` names, goes to that address alone and is written nowhere.
Without `?key=`, OPENAI_API_KEY is used for api.openai.com and no key for any other server.

Whatever a server says enters here. Of a reply so many bytes are read, and of an answer so many characters taken, as
its limit of tokens can fill; the rest is cut, which is marked and said. A request takes SECONDS, all attempts for one
answer twice as long; a server may ask once for a pause of two minutes more. A key that a server repeats, or any
Authorization header, is taken out; half characters, which no file takes, become escapes.

What a server charges for rides on each answer (`WrittenText.beside`) into its row of answers.jsonl; runs/costs.py adds
it up.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

from auditkit import specs
from auditkit.errors import AuditError, Unfinished
from auditkit.models.base import WrittenText
from auditkit.models.offload import shrunk
from auditkit.redact import keep_secret, redacted, without_headers
from auditkit.text import nearest, storable

if TYPE_CHECKING:
    import openai

    from auditkit.models.bounded_http import BoundedClient

AT_ONCE = 8  # requests under way
RETRIES = 5  # after pauses of 0.5, 1, 2, 4 and 8 s, or of what the server's Retry-After asks for, up to two minutes
SECONDS = 300  # for one request; all attempts for one answer: twice as many
CONNECTING, LISTING = 10, 10  # seconds: for a connection, for the list of a server's models
LETTERS = 32  # of a token at most, on the average of an answer: a longer answer than its tokens can make is cut
ENVELOPE, BYTES = 65_536, 256  # of a reply: for what stands around an answer, and for each of its tokens
OPENAI = "api.openai.com"
OWN_SETTINGS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS")  # meant for OPENAI


@dataclass
class Endpoint:
    """One model of one server, with the three things that every model here has: `name`, `batch_size` and `write`."""

    name: str
    batch_size: int
    place: str  # the server's address
    model: str  # what the server calls it
    variable: str  # where its key comes from, "" for none
    max_pixels: int | None
    client: openai.OpenAI = field(repr=False)
    http: BoundedClient = field(repr=False)
    limit: str = "max_tokens"  # newer hosted models want it called max_completion_tokens
    steerable: bool = True  # some hosted models refuse a temperature
    long_winded: bool = False  # it was said that it writes more than it may

    @classmethod
    def of(cls, spec: specs.Spec) -> Endpoint:
        """The endpoint that a spec names; nothing is sent yet.

        Raises AuditError when the package is missing, or the environment variable with the key.
        """
        try:
            import openai
        except ImportError:
            raise AuditError(f'"{spec.place}" needs one more package: pip install auditkit[endpoint]') from None
        from auditkit.models.bounded_http import BoundedClient

        key, variable = _key(spec)
        others = [] if urlsplit(spec.place).hostname == OPENAI else OWN_SETTINGS
        hidden = {name: os.environ.pop(name) for name in others if name in os.environ}
        try:
            http = BoundedClient(SECONDS, CONNECTING)
            client = openai.OpenAI(
                api_key=key, base_url=spec.place, max_retries=RETRIES, timeout=http.timeout, http_client=http
            )
        finally:
            os.environ.update(hidden)
        own = spec.options
        return cls(
            spec.name, own.get("batch_size", AT_ONCE), spec.place, spec.model, variable, own.get("max_pixels"), client,
            http,
        )  # fmt: skip

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """What the model writes to (image, prompt) pairs, in their order, stripped; an image of None is no image.

        Temperature 0 is greedy. A refused answer is an empty one.

        Raises Unfinished, an AuditError, when a request fails for good; it holds the answers that came back.
        """
        with concurrent.futures.ThreadPoolExecutor(self.batch_size) as pool:
            asked = [
                pool.submit(self._answer, image, prompt, max_new_tokens, temperature)
                for image, prompt in zip(images, prompts, strict=True)
            ]
            _, waiting = concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_EXCEPTION)
            for request in waiting:
                request.cancel()  # only what has not been sent
        sent = [request for request in asked if not request.cancelled()]
        for error in filter(None, (request.exception() for request in sent)):
            if not isinstance(error, AuditError):
                raise error
            kept = [request.result() if request in sent and not request.exception() else None for request in asked]
            raise Unfinished(str(error), kept) from None  # what a server says may hold a key, so it is not shown whole
        return [request.result() for request in asked]

    def _answer(self, image: Image.Image | None, prompt: str, max_new_tokens: int, temperature: float) -> WrittenText:
        """One request, sent again in other words where the model does not take these."""
        import openai

        content = (
            prompt if image is None else [_pictured(shrunk(image, self.max_pixels)), {"type": "text", "text": prompt}]
        )
        messages = [{"role": "user", "content": content}]
        with self.http.one_answer(ENVELOPE + BYTES * max_new_tokens):
            while True:
                how = {self.limit: max_new_tokens} | ({"temperature": temperature} if self.steerable else {})
                try:
                    raw = self.client.chat.completions.with_raw_response.create(
                        model=self.model, messages=messages, **how
                    )
                except openai.BadRequestError as error:
                    if error.code == "content_filter":
                        return WrittenText("", {"tokens": None, "refused": True})
                    if not self._yields(error, how):
                        raise AuditError(self._explained(error)) from None
                except openai.OpenAIError as error:
                    raise AuditError(self._explained(error)) from None
                else:
                    return self._read(raw, max_new_tokens)

    def _yields(self, error: openai.BadRequestError, how: dict) -> bool:
        """Whether the request is to be sent again without what the model refused."""
        said = self._said(error)
        if "max_tokens" in how and "max_completion_tokens" in said:
            self.limit = "max_completion_tokens"
            return True
        if "temperature" in how and (error.param == "temperature" or "'temperature'" in said):
            if self.steerable:
                print(f'"{self.name}" takes no temperature: its answers are not greedy, and may differ the next time.')
            self.steerable = False
            return True
        return False

    def _read(self, raw, max_new_tokens: int) -> WrittenText:
        """The answer in a server's reply."""
        body, longer = raw.http_response.content, "cut" in raw.http_response.extensions
        try:
            reply = _reply(body, longer)
            choice, usage = reply["choices"][0], reply.get("usage")
            message, ended = choice["message"], choice.get("finish_reason")
            content = message.get("content")
        except (ValueError, LookupError, TypeError, AttributeError):
            size = f" in its first {len(body):,} bytes" if longer else ""
            raise AuditError(
                f'"{self.name}": {self.place} answers what is no chat completion{size} '
                f"({_short(body[:4000].decode('utf-8', 'replace'))!r}); an address usually ends in /v1."
            ) from None
        counted = usage if isinstance(usage, dict) else {}
        tokens = [_count(counted.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        beside: dict[str, Any] = {"tokens": None if None in tokens else tokens}
        beside |= {"retries": raw.retries_taken} if raw.retries_taken else {}
        if message.get("refusal") or ended == "content_filter":
            return WrittenText("", beside | {"refused": True})
        details = counted.get("completion_tokens_details")
        thought = isinstance(details, dict) and details.get("reasoning_tokens")
        thought = thought or message.get("reasoning_content") or message.get("reasoning")
        if not content and thought and ended == "length":
            raise AuditError(
                f'"{self.name}" thought for all of its {max_new_tokens} tokens and said nothing; raise '
                "max_answer_tokens, or name a model that answers at once."
            )
        if not isinstance(content, str):
            raise AuditError(
                f'"{self.name}": {self.place} answers with no text but {_short(content)}; name another model.'
            )
        text, marks = _taken(content.strip(), LETTERS * max_new_tokens)
        if "long" in marks and not self.long_winded:
            self.long_winded = True
            print(f'"{self.name}" writes more than the {max_new_tokens} tokens it was asked for; answers are cut after '
                  f"{LETTERS * max_new_tokens:,} characters.")  # fmt: skip
        if "long" in marks or ended == "length":
            beside["cut"] = True
        return WrittenText(text, beside | {name: True for name in ("redacted", "escaped") if name in marks})

    def _explained(self, error: openai.OpenAIError) -> str:
        """One sentence on what went wrong and what to do."""
        import openai

        request = getattr(error, "request", None)
        times = 1 + int(request.headers.get("x-stainless-retry-count", 0)) if request is not None else 1
        tried = f"after {times} attempts" if times > 1 else "at the first attempt"
        where, status, said = f'"{self.name}": {self.place}', getattr(error, "status_code", None), self._said(error)
        bounded = error.response.extensions if isinstance(error, openai.APIStatusError) else {}
        if host := bounded.get("elsewhere"):
            return (
                f"{where} sends on to another server, {_short(host)} ({status}), which is not followed, for picture "
                "and question would go there too; name that address if you trust it."
            )
        if isinstance(error, openai.APITimeoutError) or bounded.get("late"):
            return f"{where} did not answer within {SECONDS} s {tried}; ask it less at once (?batch_size=)."
        if isinstance(error, openai.APIConnectionError):
            why = _short(error.__cause__ or error)
            return f"{where} cannot be reached ({why}) {tried}; start the server or correct the address."
        if status == 401 and not self.variable:
            return f"{where} wants a key (401); name the environment variable that holds it, as in ?key=MY_KEY."
        if status == 401:
            return f"{where} does not accept the key in {self.variable} (401); put a valid one there."
        if status == 403:
            key = f"the key in {self.variable} has" if self.variable else "who comes without ?key= has"
            return f"{where} says that {key} no right to {self.model} (403: {said})."
        if status == 404:
            return f"{where} has no model {self.model} (404){self._served()}."
        if status == 413:
            return f"{where} finds the picture too large (413); make it smaller with ?max_pixels=."
        if status == 429:
            return f"{where} takes no more requests, {tried} (429: {said}); wait or lower ?batch_size=, then run again."
        if status and status >= 500:
            return f"{where} fails {tried} ({status}: {said}); its own log says why."
        return f"{where} refuses the request ({status or type(error).__name__}: {said}); does the model take pictures?"

    def _served(self) -> str:
        """What to put in place of a model that the server does not have."""
        import openai

        from auditkit.models.bounded_http import MOST_LISTED

        try:
            with self.http.one_answer(MOST_LISTED, LISTING):
                listed = self.client.with_options(max_retries=0).models.list(timeout=LISTING)
            names = [_short(model.id) for model in listed]
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, RecursionError):
            names = []
        if not names:
            return "; an address usually ends in /v1"
        near = nearest(self.model, names, cutoff=0.4)
        shown = sorted(names, key=lambda name: name != near)[:10]
        return f"; it serves {', '.join(shown)}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    def _said(self, error: openai.OpenAIError) -> str:
        """The server's own words."""
        body = getattr(error, "body", None)
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        return _short(body or "no reason given")


def _key(spec: specs.Spec) -> tuple[str, str]:
    """The key for a server and the name of its variable; "-", "" where there is none to send."""
    address = urlsplit(spec.place)
    own = "OPENAI_API_KEY" if (address.scheme, address.hostname) == ("https", OPENAI) else ""
    variable = spec.options.get("key", own)
    if not variable:
        return "-", ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise AuditError(f'"{spec.name}": {spec.place} needs a key; put it into the environment variable {variable}.')
    if not key.isascii() or not key.isprintable() or " " in key:
        raise AuditError(f'"{spec.name}": what the environment variable {variable} holds is no key.')
    return keep_secret(key), variable


def _pictured(image: Image.Image) -> dict:
    """A picture as a part of a message."""
    png = io.BytesIO()
    image.convert("RGB").save(png, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


def _reply(body: bytes, longer: bool) -> Any:
    """A reply's JSON; of one that was cut, or that is too deep to be read, the beginning of its answer.

    Numbers that are none, or of more than 18 digits, are None. Raises ValueError for what is no JSON.
    """
    text = body.decode(json.detect_encoding(body), "surrogateescape")
    try:
        return json.loads(text, parse_int=lambda n: int(n) if len(n) < 19 else None, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        begins = BEGINS.search(text) if longer or isinstance(error, RecursionError) else None
        if begins is None:
            raise ValueError("no JSON") from None
        content = json.loads(f'"{re.sub(TORN_ESCAPE, "", begins[1])}"', strict=False)
        return {"choices": [{"message": {"content": content}, "finish_reason": None if begins[2] else "length"}]}


BEGINS = re.compile(r'"message"\s*:\s*\{[^{}]*?"content"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)\\?("?)', re.S)
TORN_ESCAPE = r"\\u[0-9a-fA-F]{0,3}$"


def _count(n: Any) -> int | None:
    """A number of tokens; None for what is none."""
    return int(n) if isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e15 else None


def _taken(answer: str, most: int) -> tuple[str, set[str]]:
    """An answer as it is kept, and what was done to it: redacted, cut because it is too "long", escaped."""
    clean = without_headers(redacted(answer))
    cut = clean[:most].rstrip()
    kept = storable(cut)
    changed = {"redacted": clean != answer, "long": len(clean) > most, "escaped": kept != cut}
    return kept, {name for name, so in changed.items() if so}


def _short(said: object) -> str:
    """The beginning of something that a server said, without a key."""
    try:
        text = str(said)
    except RecursionError:
        text = "nothing that can be read"
    return " ".join(without_headers(redacted(text)).split())[:160]
