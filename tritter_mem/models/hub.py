"""Models on the Hugging Face Hub: their configuration and headers; never weights, never code.

huggingface_hub says where the Hub is, what the token is and what its cache holds. Bytes are fetched
by `RemoteFile`, within its bounds, and are not written to the cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import quote, urlsplit

from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import ByteSource, LocalFile
from tritter_mem.models.json_objects import parse_object, read_object
from tritter_mem.models.model_files import close_names
from tritter_mem.models.remote_file import HttpStatusError, RemoteFile, UnreachableError
from tritter_mem.text import printable
from tritter_mem.units import MiB
from tritter_mem.version import __version__

MAIN = "main"
WEB_ADDRESS = "https://huggingface.co/"
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})"
    r"(?:@(?P<revision>[^\s:@]{1,250}))?(?::(?P<file>[^\s:][^:]{0,250}))?",
    re.ASCII,
)
_FILE = re.compile(r".*\.(ya?ml|json|gguf|safetensors|py|pickle|bin|txt)", re.IGNORECASE)
_MAX_NAMES_BYTES = 1 * MiB
_WITHOUT_NETWORK = (
    "without the network, download its config.json and name that folder, or fill the cache "
    "elsewhere and set HF_HUB_OFFLINE=1"
)


@dataclass(frozen=True)
class HubName:
    """What `org/name@revision:file.gguf` says.

    Attributes:
        repository: such as `Qwen/Qwen3-8B`.
        revision: a branch, a tag or a commit.
        file: in the repository; empty where none is named.
    """

    repository: str
    revision: str = MAIN
    file: str = ""


def parse_hub_name(text: str) -> HubName | None:
    """Read `org/name`, with `@revision` and `:file` where wanted; None where it is not such a name.

    The address of a model's page is read as its name.

    A name that ends as files do, such as `models/mine.gguf`, is taken for a path.
    """
    match = _NAME.fullmatch(text.removeprefix(WEB_ADDRESS).rstrip("/"))
    if match is None or _FILE.fullmatch(match["repository"]):
        return None
    revision, file = match["revision"] or MAIN, match["file"] or ""
    if ".." in match["repository"] or ".." in re.split("[/\\\\]", f"{revision}/{file}"):
        return None
    return HubName(match["repository"], revision, file)


class HubFiles:
    """The files of a repository: from the cache of huggingface_hub where they are in it.

    Attributes:
        label: what messages call the repository.
        commit: that all files are of; None before the first is opened.
        cache_only: why only the cache was looked at; empty where the Hub was asked, or had not to.
    """

    def __init__(self, name: HubName) -> None:
        """Name a repository; nothing is sent before files are asked for.

        Raises:
            InputError: huggingface_hub is not installed.
        """
        self.label = name.repository
        self.commit: str | None = None
        self.cache_only = ""
        self._name = name
        self._hub = _Hub(name.repository)
        self._names: Collection[str] | None = None
        self._lock = Lock()

    def names(self) -> Collection[str]:
        """List the files of the repository, else those that the cache holds.

        Raises:
            InputError: the Hub cannot be reached, or it refuses, and nothing is in the cache.
        """
        with self._lock:
            if self._names is None:
                self._names = self._list()
            return self._names

    def open(self, name: str) -> ByteSource | None:
        """Open a file of the repository; None where there is no such one."""
        found = self._hub.cached(name, self.commit or self._name.revision)
        if found is not None and self.commit is None:
            self.commit = _commit_of(found.path)
        if found is not None:
            label = f"{self.label}: {name}"
            return None if found.path is None else LocalFile(found.path, label)
        if name not in self.names() or self.cache_only:
            return None
        return self._hub.file(name, self.commit or self._name.revision)

    def _list(self) -> Collection[str]:
        revision = self.commit or self._name.revision
        if self._hub.offline:
            return self._list_cache(revision, "HF_HUB_OFFLINE is set")
        try:
            info = self._hub.info(revision)
        except UnreachableError as error:
            with suppress(InputError):
                return self._list_cache(revision, error.reason)
            raise
        sha, siblings = info.get("sha"), info.get("siblings")
        if isinstance(sha, str) and re.fullmatch("[0-9a-f]{40}", sha):
            self.commit = sha
        if not isinstance(siblings, list):
            raise InputError(f"{self.label}: {self._hub.host} lists no files; is it a Hub?")
        names = (item.get("rfilename") for item in siblings if isinstance(item, dict))
        return {name for name in names if isinstance(name, str)}

    def _list_cache(self, revision: str, why: str) -> Collection[str]:
        folder = self._hub.snapshot(revision)
        if folder is None:
            raise InputError(
                f"{self.label}: {why}, and the cache ({self._hub.cache}) does not hold it at "
                f"{printable(revision, 60)}; download its config.json and name that folder"
            )
        self.commit, self.cache_only = folder.name, why
        self.label = f"{self.label} (the copy in the cache: {why})"
        return {
            str((Path(place) / name).relative_to(folder))
            for place, _, names in os.walk(folder)
            for name in names
        }


@dataclass(frozen=True)
class _Cached:
    """What the cache knows of a file: where it is; without a path: that there is no such file."""

    path: Path | None


def _commit_of(path: Path | None) -> str | None:
    """The commit of a file in the cache: `…/snapshots/COMMIT/config.json`."""
    if path is None or "snapshots" not in path.parts[:-2]:
        return None
    return path.parts[len(path.parts) - path.parts[::-1].index("snapshots")]


class _Hub:
    """The Hub as huggingface_hub is set up for it, asked for one repository."""

    def __init__(self, repository: str) -> None:
        try:
            from huggingface_hub import constants, get_token
        except ModuleNotFoundError as error:
            if error.name != "huggingface_hub":
                raise
            raise InputError(
                f"{repository}: the Hub needs huggingface_hub, which is not installed: "
                "pip install huggingface_hub"
            ) from None
        self.repository = repository
        self.offline = constants.HF_HUB_OFFLINE
        self.endpoint = constants.ENDPOINT
        self.cache = constants.HF_HUB_CACHE
        address = urlsplit(self.endpoint)
        self.host = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
        self.headers = {"User-Agent": f"tritter-mem/{__version__}"}
        self.token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if self.token:
            self.headers["Authorization"] = f"Bearer {self.token}"

    def cached(self, name: str, revision: str) -> _Cached | None:
        """What the cache knows of a file; None where it knows nothing."""
        from huggingface_hub import try_to_load_from_cache

        with suppress(OSError, ValueError):  # a damaged cache is an empty one
            found = try_to_load_from_cache(
                self.repository, name, cache_dir=self.cache, revision=revision
            )
            if found is not None:
                return _Cached(Path(found) if isinstance(found, str) else None)
        return None

    def snapshot(self, revision: str) -> Path | None:
        """The folder of a revision in the cache; None where the cache lacks it."""
        place = Path(self.cache) / f"models--{self.repository.replace('/', '--')}"
        commit = revision
        with suppress(OSError, ValueError):
            commit = (place / "refs" / revision).read_text().strip()
        folder = place / "snapshots" / commit
        return folder if re.fullmatch("[0-9a-f]{40}", commit) and folder.is_dir() else None

    def info(self, revision: str) -> dict[str, object]:
        """What the Hub says of the repository at a revision."""
        address = f"/api/models/{self.repository}/revision/{quote(revision, safe='')}"
        with _HubFile(self, address, "its list of files", revision) as source:
            return read_object(source)

    def file(self, name: str, revision: str) -> ByteSource:
        """Name a file of the repository."""
        address = f"/{self.repository}/resolve/{quote(revision, safe='')}/{quote(name)}"
        return _HubFile(self, address, name, revision)

    def no_answer(self, error: UnreachableError, name: str) -> UnreachableError:
        """Say how to go on without the network."""
        tried = f"asked {self.host} for {printable(name, 100)}, no answer: {error.reason}"
        return UnreachableError(f"{self.repository}: {tried}; {_WITHOUT_NETWORK}", error.reason)

    def refused(self, error: HttpStatusError, revision: str, name: str) -> InputError:
        """Say why the Hub refused, and what to do."""
        headers = {key.lower(): value for key, value in error.headers.items()}
        return InputError(f"{self.repository}: {self._why(error.status, headers, revision, name)}")

    def _why(self, status: int, headers: Mapping[str, str], revision: str, name: str) -> str:
        code = headers.get("x-error-code", "")
        by_code = {
            "GatedRepo": f"a gated repository: ask for access at {self.host}/{self.repository}, "
            f"and {self._set_token()}",
            "RevisionNotFound": f"no such revision: {printable(revision, 100)}",
            "EntryNotFound": f"no such file: {printable(name, 100)}",
        }
        if code in by_code:
            return by_code[code]
        if status == 401 and self.token and "credentials" in headers.get("x-error-message", ""):
            return "the Hub does not know the token (HF_TOKEN, or of `hf auth login`)"
        if status in {401, 404} or code == "RepoNotFound":
            return f"no such repository{self._suggestions()}, or a private one: {self._set_token()}"
        return self._by_status(status, headers, name)

    def _by_status(self, status: int, headers: Mapping[str, str], name: str) -> str:
        if status == 403:
            return f"the Hub refuses access (403): {self._set_token()}"
        if status == 429:
            wait = headers.get("retry-after", "")
            after = f"in {wait} s" if re.fullmatch(r"\d{1,6}", wait) else "later"
            return f"the Hub got too many requests (429): try again {after}, or {self._set_token()}"
        return f"{self.host} answered {status}, asked for {printable(name, 100)}; try again later"

    def _set_token(self) -> str:
        if self.token:
            return "check that HF_TOKEN, or the token of `hf auth login`, has access to it"
        return "set HF_TOKEN"

    def _suggestions(self) -> str:
        """Repositories with names like this one; empty where there are none, or no answer."""
        owner, name = self.repository.split("/")
        close = close_names(name, self._names(f"author={quote(owner)}&sort=downloads", f"{owner}/"))
        found = [f"{owner}/{other}" for other in close]
        found = found or close_names(self.repository, self._names(f"search={quote(name)}"))
        return f" (did you mean {' or '.join(found)}?)" if found else ""

    def _names(self, query: str, prefix: str = "") -> list[str]:
        """Names of repositories that the Hub finds, without a prefix that they have."""
        source = RemoteFile(f"{self.endpoint}/api/models?{query}&limit=100", self.headers, "names")
        with suppress(InputError):
            content = source.read_up_to(0, _MAX_NAMES_BYTES)
            found = parse_object(b'{"models": %b}' % content, source)["models"]
            items = found if isinstance(found, list) else []
            names = [item.get("id") for item in items if isinstance(item, dict)]
            return [name.removeprefix(prefix) for name in names if isinstance(name, str)]
        return []


class _HubFile(RemoteFile):
    """Something that the Hub sends, with errors that say what to do."""

    def __init__(self, hub: _Hub, address: str, name: str, revision: str) -> None:
        super().__init__(hub.endpoint + address, hub.headers, f"{hub.repository}: {name}")
        self._hub, self._name, self._revision = hub, name, revision

    def _fetch(self, start: int, count: int) -> bytes:
        try:
            return super()._fetch(start, count)
        except HttpStatusError as error:
            raise self._hub.refused(error, self._revision, self._name) from None
        except UnreachableError as error:
            raise self._hub.no_answer(error, self._name) from None
