"""Models behind an OpenAI-compatible server: a vLLM server, `transformers serve`, a hosted model.

    http://localhost:8000/v1#google/gemma-3-12b-it
    https://example.org/v1?key=MY_KEY&price_in=0.1&price_out=0.4&batch_size=16#org/large

The `openai` package sends the requests, `batch_size` of them at once, and tries again, each time after a longer pause,
what failed for a reason that may pass. A picture goes along as PNG, so that no pixel changes on the way; photographs
are large in it, and `?max_pixels=` makes them smaller.

A key is read from the environment variable that `?key=` names, goes to that address alone and is written nowhere.
Without `?key=`, OPENAI_API_KEY is used for api.openai.com and no key for any other server.

What a server charges for rides on each answer (`WrittenText.beside`) into its row of answers.jsonl; runs/costs.py adds
it up.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from PIL import Image

from auditkit import specs
from auditkit.errors import AuditError, Unfinished
from auditkit.models.base import WrittenText
from auditkit.models.offload import shrunk
from auditkit.text import nearest

if TYPE_CHECKING:
    import openai

AT_ONCE = 8  # requests under way
RETRIES = 5  # after pauses of 0.5, 1, 2, 4 and 8 s, or of what the server's Retry-After asks for, up to two minutes
SECONDS = 300  # for one answer
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
    limit: str = "max_tokens"  # newer hosted models want it called max_completion_tokens
    steerable: bool = True  # some hosted models refuse a temperature

    @classmethod
    def of(cls, spec: specs.Spec) -> Endpoint:
        """The endpoint that a spec names; nothing is sent yet.

        Raises AuditError when the package is missing, or the environment variable with the key.
        """
        try:
            import openai
        except ImportError:
            raise AuditError(f'"{spec.place}" needs one more package: pip install auditkit[endpoint]') from None
        key, variable = _key(spec)
        others = [] if urlsplit(spec.place).hostname == OPENAI else OWN_SETTINGS
        hidden = {name: os.environ.pop(name) for name in others if name in os.environ}
        try:
            client = openai.OpenAI(
                api_key=key, base_url=spec.place, max_retries=RETRIES, timeout=openai.Timeout(SECONDS, connect=10)
            )
        finally:
            os.environ.update(hidden)
        own = spec.options
        return cls(
            spec.name, own.get("batch_size", AT_ONCE), spec.place, spec.model, variable, own.get("max_pixels"), client
        )

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
        while True:
            how = {self.limit: max_new_tokens} | ({"temperature": temperature} if self.steerable else {})
            try:
                raw = self.client.chat.completions.with_raw_response.create(model=self.model, messages=messages, **how)
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
        try:
            reply = raw.http_response.json()
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            message, content = choice["message"], choice["message"].get("content")
            tokens = [int(usage[name]) for name in ("prompt_tokens", "completion_tokens")] if usage else None
            thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise AuditError(
                f'"{self.name}": {self.place} answers what is no chat completion ({_short(raw.text)!r}); '
                "an address usually ends in /v1."
            ) from None
        beside = {"tokens": tokens} | ({"retries": raw.retries_taken} if raw.retries_taken else {})
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return WrittenText("", beside | {"refused": True})
        thought = thought or message.get("reasoning_content") or message.get("reasoning")
        if not content and thought and choice.get("finish_reason") == "length":
            raise AuditError(
                f'"{self.name}" thought for all of its {max_new_tokens} tokens and said nothing; raise '
                "max_answer_tokens, or name a model that answers at once."
            )
        if not isinstance(content, str):
            raise AuditError(
                f'"{self.name}": {self.place} answers with no text but {_short(repr(content))}; name another model.'
            )
        cut = {"cut": True} if choice.get("finish_reason") == "length" else {}
        return WrittenText(content.strip(), beside | cut)

    def _explained(self, error: openai.OpenAIError) -> str:
        """One sentence on what went wrong and what to do."""
        import openai

        request = getattr(error, "request", None)
        times = 1 + int(request.headers.get("x-stainless-retry-count", 0)) if request is not None else 1
        tried = f"after {times} attempts" if times > 1 else "at the first attempt"
        where, status, said = f'"{self.name}": {self.place}', getattr(error, "status_code", None), self._said(error)
        if isinstance(error, openai.APITimeoutError):
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

        try:
            names = [model.id for model in self.client.models.list(timeout=10)]
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):
            names = []
        if not names:
            return "; an address usually ends in /v1"
        near = nearest(self.model, names, cutoff=0.4)
        shown = sorted(names, key=lambda name: name != near)[:10]
        return f"; it serves {', '.join(shown)}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    def _said(self, error: openai.OpenAIError) -> str:
        """The server's own words, without the key that some servers repeat in them."""
        body = getattr(error, "body", None)
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        said = str(body or "no reason given")
        return _short(said.replace(self.client.api_key, "(the key)") if self.variable else said)


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
    return key, variable


def _pictured(image: Image.Image) -> dict:
    """A picture as a part of a message."""
    png = io.BytesIO()
    image.convert("RGB").save(png, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


def _short(text) -> str:
    return " ".join(str(text).split())[:160]
