"""Keys, tokens and passwords are taken out of whatever is written or shown: messages, records, reports, notebooks.

What is looked for: values that were given as a key (`?key=`), the values of environment variables that are called a
key, token, secret or password (HF_TOKEN, WANDB_API_KEY), user and password inside an address that such a variable or
a text holds (http://user:password@host), the hub's token file and the passwords in ~/.netrc, where trackers keep their
keys. Nothing of fewer than 8 characters is looked for: it would be found inside ordinary words.
"""

import functools
import netrc
import os
import re
from pathlib import Path
from urllib.parse import unquote

HIDDEN = "(the key)"
SHORTEST = 8
CALLED_SECRET = re.compile(r"(?:^|_)(?:\w*KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|PAT|CREDENTIALS?|AUTH)(?:_\d+)?$", re.I)
USER_IN_ADDRESS = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]{1,15}://)[^\s/?#@\"'<>]{1,500}@")
HEADER = re.compile(
    r"""(\bauthorization\\?["']?\s*[:=]\s*\\?["']?(?:bearer|basic|)\s*)(?=[^\s"'\\,;]*\d)[^\s"'\\,;]{8,}"""
    r"""|(\b(?:bearer|basic)\s+)(?=[^\s"'\\,;]*\d)[^\s"'\\,;]{16,}""",
    re.I,
)

_given: set[str] = set()


def keep_secret(value: str) -> str:
    """Remember a key of this process, and return it."""
    if len(value) >= SHORTEST:
        _given.add(value)
    return value


def redacted(text: str) -> str:
    """A text without the keys, tokens and passwords of this process and its environment.

    >>> import os; os.environ["DOCTEST_TOKEN"] = "hf_0123456789"
    >>> redacted("asked with hf_0123456789")
    'asked with (the key)'
    >>> del os.environ["DOCTEST_TOKEN"]
    """
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def without_addresses_users(text: str) -> str:
    """The text without user and password in the addresses in it.

    >>> without_addresses_users("see https://me:pw@host/v1")
    'see https://(the key)@host/v1'
    """
    return USER_IN_ADDRESS.sub(rf"\1{HIDDEN}@", text) if "@" in text else text


def without_headers(text: str) -> str:
    """The text without what stands behind Authorization, as in a request that a server quotes.

    >>> without_headers('{"Authorization": "Bearer abc123def456"}'), without_headers("authorization: ask the owner")
    ('{"Authorization": "Bearer (the key)"}', 'authorization: ask the owner')
    """
    return HEADER.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}", text)


def _secrets() -> list[str]:
    """The longest first, for one may be a part of another."""
    found = set(_given)
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and CALLED_SECRET.search(name) and _unlike_a_word(value):
            found.add(value)
        if "://" in value and "@" in value:
            for match in USER_IN_ADDRESS.finditer(value):
                user = match[0].partition("://")[2][:-1]
                found |= {user, *user.split(":", 1)[1:]}
    found |= _in_file(*_stamp(_hub_token_file())) | _in_netrc(*_stamp(Path(os.path.expanduser("~/.netrc"))))
    forms = {
        form for secret in found for form in (secret, unquote(secret), secret.replace("\\", r"\\").replace('"', r"\""))
    }
    return sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)


def _unlike_a_word(value: str) -> bool:
    """Whether it is none of the settings that a variable with such a name may hold: a word, a path."""
    if "://" in value or (value[0] in "/~." and os.path.exists(os.path.expanduser(value))):
        return False
    return len(value) >= 20 or any(sign.isdigit() for sign in value) or value.lower() != value != value.upper()


def _hub_token_file() -> Path:
    """As huggingface_hub finds it, without its import."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return Path(os.path.expanduser(os.environ.get("HF_TOKEN_PATH", os.path.join(home, "token"))))


def _stamp(path: Path) -> tuple[Path, int]:
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return path, 0


@functools.lru_cache(8)
def _in_file(path: Path, changed: int) -> set[str]:
    try:
        return {path.read_text(encoding="utf-8").strip()} if changed else set()
    except (OSError, ValueError):
        return set()


@functools.lru_cache(8)
def _in_netrc(path: Path, changed: int) -> set[str]:
    try:
        return {entry[2] for entry in netrc.netrc(path).hosts.values() if entry[2]} if changed else set()
    except (OSError, ValueError, netrc.NetrcParseError):
        return set()
