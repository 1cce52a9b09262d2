"""What a log of answers holds, looked up outside of memory: SQLite, by a digest of model, picture and question.

The log stays what counts. Of a large one the index is kept beside it, so that a start reads only what has been added
since; it is made anew where the log is shorter, other or, at the same length, newer than it says. Without it, with a
damaged one or in a folder that takes no file, the log is read into a private temporary database, as a small one always
is. What a process files itself goes there too: the kept index is only written when it is opened.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.runs import jsonl
from auditkit.runs.files import fit_for_disk

Key = tuple[str, str, str]  # model, picture, question
LARGE = 16_000_000  # bytes of a log, some 150,000 answers: reading it takes a second
END = 4096  # bytes before the end of what is indexed, by which a log is known again
CACHE = 64_000  # kB of a database that are held in memory
TABLES = """
CREATE TABLE answers (digest BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE log (bytes INTEGER, modified INTEGER, end BLOB);
"""


class AnswerIndex:
    """The answers of a log, and those that are added."""

    def __init__(self, log: Path):
        self._kept = _kept_index(log) if log.is_file() and log.stat().st_size >= LARGE else None
        with _readable():
            self._own = _connected("")  # a private file, which SQLite removes
            self._own.executescript(TABLES)
            if self._kept is None:
                _fill(self._own, jsonl.each(log))

    def __len__(self) -> int:
        """How many answers there are."""
        return sum(one.execute("SELECT COUNT(*) FROM answers").fetchone()[0] for one in self._databases())

    def get(self, keys: Iterable[Key]) -> list[str | None]:
        """The answer to each, None where there is none."""
        with _readable():
            return [self._one(_digest(*key)) for key in keys]

    def add(self, answers: dict[Key, str]) -> None:
        """Remember answers that are in the log by now, as they are read from it."""
        filed = json.loads(fit_for_disk(json.dumps(list(answers.values()), ensure_ascii=False)))
        rows = ((_digest(*key), _stored(said)) for key, said in zip(answers, filed, strict=True))
        with _readable(), self._own:
            self._own.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def _one(self, digest: bytes) -> str | None:
        for database in self._databases():
            if found := database.execute("SELECT answer FROM answers WHERE digest = ?", (digest,)).fetchone():
                return found[0].decode("utf-8", "surrogatepass")
        return None

    def _databases(self) -> Sequence[sqlite3.Connection]:
        return (self._own,) if self._kept is None else (self._own, self._kept)


def index_file(log: Path) -> Path:
    """Where the index of a large log is kept; a stage's list of files leaves out what begins with a dot."""
    return log.with_name(f".{log.name}.index")


def _kept_index(log: Path) -> sqlite3.Connection | None:
    """The index beside a log, up to date; None where none can be kept there."""
    try:
        path = index_file(log)
        database = _known(path, log)
        if database is None:
            beside = path.with_name(path.name + ".part")
            beside.unlink(missing_ok=True)
            with contextlib.closing(_connected(str(beside))) as made:
                made.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
                _bring_up(made, log, 0)
            os.replace(beside, path)
            database = _connected(str(path))
        return database
    except (sqlite3.Error, OSError):  # a folder or a disk that takes no file, an index that is none
        return None


def _known(path: Path, log: Path) -> sqlite3.Connection | None:
    """An index that speaks of this log, with what has been added to the log since; None where there is none such."""
    if not path.is_file():
        return None
    database = _connected(str(path))
    try:
        told = database.execute("SELECT bytes, modified, end FROM log").fetchone()
        size, modified, end = told or (0, 0, None)
        now = log.stat()
        if end == _end(log, size) and (now.st_size > size or (now.st_size, now.st_mtime_ns) == (size, modified)):
            if now.st_size > size:
                _bring_up(database, log, size)
            return database
    except sqlite3.Error:
        pass
    database.close()
    return None


def _bring_up(database: sqlite3.Connection, log: Path, begin: int) -> None:
    """Put into an index what stands in the log from a byte on."""
    with database:
        _fill(database, jsonl.each(log, begin))
        now = log.stat()
        database.execute("DELETE FROM log")
        about = (now.st_size, now.st_mtime_ns, _end(log, now.st_size))
        database.execute("INSERT INTO log VALUES (?, ?, ?)", about)


def _fill(database: sqlite3.Connection, rows: Iterable[dict]) -> None:
    filed = ((_digest(row["model"], row["picture"], row["question"]), _stored(row["answer"])) for row in rows)
    with database:
        database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", filed)


def _connected(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60, check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{CACHE}")
    return database


def _end(log: Path, size: int) -> bytes:
    """A digest of the last bytes before a place in the log."""
    with log.open("rb") as file:
        file.seek(max(0, size - END))
        return hashlib.blake2b(file.read(min(size, END)), digest_size=16).digest()


def _digest(model: str, picture: str, question: str) -> bytes:
    text = f"{len(model)} {len(picture)} {model}{picture}{question}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _stored(answer: str) -> bytes:
    return answer.encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """While it lasts, trouble of a database is told in a sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise AuditError(
            f"answers cannot be looked up, for their index says: {error}. Free some room in the folder for temporary "
            "files (TMPDIR names another place) and run again; what is done is kept."
        ) from None
