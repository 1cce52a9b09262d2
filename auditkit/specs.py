"""Which model, and how to run it: the one text that names a model in a parameter file.

    miniature:target                                a shipped miniature
    my_models/target                                a folder
    google/gemma-3-27b-it?bits=4&max_pixels=802816  a hub id, here with its weights in 4 bits and its pictures shrunk
    vllm:google/gemma-3-12b-it                      the same kind of id, answered by vLLM (extra `vllm`)
    http://localhost:8000/v1#google/gemma-3-12b-it  a model behind any OpenAI-compatible server (extra `endpoint`)
    miniature:target?adapter=outputs/demo/07_rectify/adapter   a model repaired, or trained, by a run of ours

An adapter's folder is what a training has left: LoRA weights, or all of a model's. Several stand with commas between
them and go on one after another, as the rounds of a repair did (experiments/rounds.py).

What follows the question mark holds for this model alone and is written like a web address's query. Records call a
model by the last part of its name and by every option that changes what it answers (`gemma-3-27b-it+bits=4`), or as
`name` says (google/gemma-3-27b-it?name=big).

A pipeline that makes pictures (counterfactual/make.py) is named in the same way. Options that are not ours are then
arguments of the pipeline's own call:

    stabilityai/sdxl-turbo?steps=1&guidance=0&size=512
    timbrooks/instruct-pix2pix?image_guidance_scale=1.2
"""

import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urldefrag, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from auditkit.errors import AuditError
from auditkit.text import nearest, shortened, visible

HUB_SECONDS = 10  # to wait for the hub's answer to one question

Whole = Annotated[int, BeforeValidator(int), Field(gt=0, le=10**9)]  # by Python's int, which does not take 2.0 for 2
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
LONGEST = 4000  # characters of a model's text: a few folders of adapters
LONGEST_NAME = 100


def _key(value: str) -> str:
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", value):  # not shown: it may be the key itself
        raise AuditError("?key= wants the name of the environment variable that holds the key, in capitals.")
    return value


def _size(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
    if not found:
        raise AuditError(f"size is written 512 or 768x512 (WIDTHxHEIGHT), not {shortened(value)}.")
    if max(len(side or "") for side in found.groups()) > 5:
        raise AuditError(f"size is at most 99999 pixels a side, not {shortened(value)}.")
    return int(found[1]), int(found[2] or found[1])


def _name(value: str) -> str:
    if not re.fullmatch(r"[\w.+=-]+", value) or len(value) > LONGEST_NAME:
        raise AuditError(
            f"name is made of letters, digits and . _ - + =, at most {LONGEST_NAME}, not {shortened(value)}."
        )
    return value


Name = Annotated[str, AfterValidator(_name)]  # what records call the model


class Loaded(TypedDict, total=False):
    """Options of whatever is loaded from a folder or the hub."""

    dtype: Literal["float32", "bfloat16", "float16"]
    batch_size: Whole
    revision: str  # of the hub id: a branch, tag or commit


class Local(Loaded, total=False):
    """Options of a model that answers here, by transformers."""

    name: Name
    bits: Annotated[Literal["4", "8"], AfterValidator(int)]  # of the weights, by bitsandbytes
    max_pixels: Whole  # a larger picture is shrunk to this many before the processor sees it
    device: str
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
    trust_remote_code: Literal["yes"]  # run the code that comes with the model
    adapter: str  # folders with what was trained on top of the model, first to last, commas between them


class VLLM(Loaded, total=False):
    """Options of a model that answers by vLLM."""

    name: Name
    max_pixels: Whole
    gpus: Whole  # over how many the model is split
    memory: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]  # share of the GPU's memory vLLM may take
    max_length: Whole  # longest prompt and answer, in tokens


class Endpoint(TypedDict, total=False):
    """Options of a model behind a server."""

    name: Name
    key: Annotated[str, AfterValidator(_key)]  # name of the environment variable with the key
    price_in: Positive  # dollars per million tokens read
    price_out: Positive  # dollars per million tokens written
    batch_size: Whole  # requests under way at once
    max_pixels: Whole


class PipelineOptions(Loaded, total=False):
    """Options of a pipeline that makes pictures."""

    device: str
    steps: Whole  # of denoising
    guidance: Annotated[
        float, Field(ge=0, le=1000, allow_inf_nan=False)
    ]  # how much the text counts, under the name that the pipeline has for it
    size: Annotated[tuple[int, int], BeforeValidator(_size)]  # pixels: one side of a square, or WIDTHxHEIGHT
    max_length: Whole  # tokens of a text that are read
    offload: Literal["none", "model", "sequential", "group"]  # weights wait in CPU memory: whole models, layers, groups
    cache: Literal["none", "first_block", "taylorseer", "pyramid"]  # steps of the denoiser that are skipped


OPTIONS = {"transformers": Local, "vllm": VLLM, "endpoint": Endpoint}
PIPELINE_OPTIONS = PipelineOptions.__optional_keys__
# where, how fast and for how much; what else is written behind a model may change its answers
HOW = {"batch_size", "device", "gpus", "memory", "offload", "key", "price_in", "price_out"}
UNTOLD = {"adapter", "trust_remote_code"}  # not an option's part of a name: told in its own way, or only permits


@dataclass(frozen=True)
class Spec:
    """A model's text, taken apart (`parse` makes it)."""

    engine: str  # transformers | vllm | endpoint | diffusers
    place: str  # folder, hub id or "miniature:NAME"; an endpoint's address
    model: str  # what an endpoint calls the model; elsewhere the place
    options: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that records use: `name`, or the last part of the model's own and each option that changes answers;
        and of each adapter enough to tell it. A pipeline that makes pictures has the last part alone.
        """
        own = self.model.removeprefix("miniature:").rstrip("/").split("/")[-1]
        if self.engine != "diffusers":
            told = sorted(f"{key}={value}" for key, value in self.options.items() if key not in HOW | UNTOLD)
            own = self.options.get("name") or "+".join([own, *told])
        return "+".join([own, *(".".join(Path(folder).parts[-3:]).lstrip("/.") for folder in self.adapters)])

    @property
    def adapters(self) -> list[str]:
        """The folders that `adapter` names, first to last; none of a pipeline, which may call anything so.

        >>> parse("a/b?adapter=x,y").adapters, parse_pipeline("a/b?adapter=2").adapters
        (['x', 'y'], [])
        """
        if self.engine == "diffusers":
            return []
        return [folder.strip() for folder in self.options.get("adapter", "").split(",") if folder.strip()]


def parse(text: str | Path) -> Spec:
    """Take a model's text apart.

    Raises AuditError for an option that the engine does not have, or a value it cannot take.

    >>> parse("google/gemma-3-27b-it?bits=4&max_pixels=802816")
    Spec(engine='transformers', place='google/gemma-3-27b-it', model='google/gemma-3-27b-it', options={'bits': 4, 'max_pixels': 802816})
    >>> spec = parse("https://example.org/v1?key=MY_KEY#org/large")
    >>> spec.engine, spec.place, spec.model, spec.name, spec.options
    ('endpoint', 'https://example.org/v1', 'org/large', 'large', {'key': 'MY_KEY'})
    >>> parse("miniature:target").name, parse("outputs/mine/").name
    ('target', 'mine')
    >>> parse("miniature:target?adapter=outputs/demo/07_rectify/adapter").name
    'target+demo.07_rectify.adapter'
    >>> parse("a/b?bits=4&device=cuda:1").name, parse("a/b?dtype=float16&revision=v2").name, parse("a/b?name=big").name
    ('b+bits=4', 'b+dtype=float16+revision=v2', 'big')
    """  # noqa: E501
    text = _refused_if_no_name(str(text))
    if text.startswith(("http://", "https://")):
        try:
            address, model = urldefrag(text)
            parts = urlsplit(address)
            there = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:  # a port beyond 65535, or brackets without an IPv6 address in them
            there = False
        if not there:
            raise AuditError(
                f'"{shown_address(text)}": is no address of a server; write one like http://localhost:8000/v1#MODEL.'
            )
        if not model:
            shown = shown_address(text)
            raise AuditError(f'"{shown}": say which of the server\'s models, as in {shown}#google/gemma-3-12b-it.')
        if parts.username or parts.password:
            raise AuditError(
                f'"{parts.hostname}": no key belongs into a parameter file; name its variable, ?key=MY_KEY.'
            )
        place, query, engine = urlunsplit(parts._replace(query="")), parts.query, "endpoint"
    else:
        engine = "vllm" if text.startswith("vllm:") else "transformers"
        place, _, query = text.removeprefix("vllm:").partition("?")
        model = place
    return Spec(engine, place, model, _checked(place, _query(place, query), OPTIONS[engine]))


def parse_pipeline(text: str | Path) -> Spec:
    """Take the text that names a pipeline apart; what is no option of ours stays, for the pipeline to judge.

    Raises AuditError for a value that an option cannot take.

    >>> parse_pipeline("stabilityai/sdxl-turbo?steps=1&guidance=0&size=512&clip_skip=1").options
    {'steps': 1, 'guidance': 0.0, 'size': (512, 512), 'clip_skip': 1}
    """
    place, _, query = _refused_if_no_name(str(text)).partition("?")
    given = _query(place, query)
    options = _checked(
        place, {name: value for name, value in given.items() if name in PIPELINE_OPTIONS}, PipelineOptions
    )
    options = {name: options[name] if name in PIPELINE_OPTIONS else _plain(value) for name, value in given.items()}
    return Spec("diffusers", place, place, options)


def adapted(text: str, folder: str | Path) -> str:
    """The text of a model with one more adapter on top of it.

    >>> adapted("a/b?bits=4", "outputs/x"), adapted("a/b?adapter=outputs/x", "outputs/y")
    ('a/b?bits=4&adapter=outputs/x', 'a/b?adapter=outputs/x,outputs/y')
    """
    spec = parse(text)
    options = spec.options | {"adapter": ",".join([*spec.adapters, str(folder)])}
    return f"{str(text).partition('?')[0]}?{urlencode(options, safe='/,:')}"


def same_model(one: str, other: str) -> bool:
    """Whether two texts name the same model asked the same way, so that the answers of one stand for the other.

    >>> same_model("a/b?bits=4&batch_size=8", "a/b?bits=4&device=cuda:1"), same_model("a/b?bits=4", "a/b")
    (True, False)
    """
    a, b = (
        (s.engine, s.place, s.model, {k: v for k, v in s.options.items() if k not in HOW})
        for s in (parse(one), parse(other))
    )
    return a == b


def is_hub_id(text: str) -> bool:
    """Whether a text can be the id of a model or data set on the hub, by the hub's own rules."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def shown_address(text: str) -> str:
    """An address without its query, which may hold what is not to be shown, and at most 200 characters of it.

    >>> shown_address("https://example.org/v1?key=1#org/large")
    'https://example.org/v1'
    """
    return text.partition("?")[0][:200]


def _refused_if_no_name(text: str) -> str:
    if len(text) > LONGEST:
        raise AuditError(f'"{text[:80]}...": a model\'s text has at most {LONGEST} characters, not {len(text):,}.')
    if visible(text, keep="") != text:
        raise AuditError(f'"{visible(text, keep="")}": a model\'s text holds no control characters.')
    return text


def _query(text: str, query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise AuditError(f'"{text}": write options as ?name=value&name=value.') from None


def _checked(text: str, given: dict[str, str], known: type) -> dict:
    """The options as what they are, in the order given. What is written in a query is text, hence no strict mode."""
    try:
        options = _adapter(known).validate_python(given, extra="forbid")
    except ValidationError as error:
        raise AuditError(f'"{text}": {_one_sentence(error, known)}') from None
    return {name: options[name] for name in given}


@functools.cache
def _adapter(known: type) -> TypeAdapter:
    return TypeAdapter(known)


def _one_sentence(error: ValidationError, known: type) -> str:
    first = error.errors(include_url=False)[0]
    name, wrong, value = str(first["loc"][0]), first["type"], first["input"]
    if wrong == "extra_forbidden":
        names = list(known.__annotations__)
        near = nearest(name, names)
        return f"unknown option {name[:80]}; " + (f"did you mean {near}?" if near else f"there are {', '.join(names)}.")
    if wrong == "value_error" and isinstance(first["ctx"]["error"], AuditError):
        return str(first["ctx"]["error"])
    if wrong == "literal_error":
        allowed = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{name} is one of {', '.join(sorted(allowed))}, not {shortened(value)}."
    if wrong.startswith("less"):
        return f"{name} is at most {first['ctx']['le']:g}, not {shortened(value)}."
    return f"{name} wants a number above 0, not {shortened(value)}."


def _plain(value: str):
    """A number, true, false, null or a list as JSON writes them, or else the text itself.

    >>> _plain("0.5"), _plain("true"), _plain("null"), _plain("blurred")
    (0.5, True, None, 'blurred')
    """
    try:
        found = json.loads(value, parse_constant=_no_number)
        return value if isinstance(found, float) and not math.isfinite(found) else found
    except (ValueError, RecursionError):
        return value


def _no_number(name: str):
    raise ValueError(f"{name} is no number")
