"""Every setting once: its FT_ name, its type, its default and what it means.

`load` merges the sources (command line > environment > .env > YAML > default), remembers where each value came from,
and turns every mistake into one UsageError that names source, key and value. Importing pydantic takes a quarter of a
second: import this module where settings are needed, not where `--help` is answered.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent import values
from agent.errors import MachineError, UsageError

PREFIX = "FT_"
LAYOUT = ("datasets", "models", "benchmarks", "output", "studies", "scores")
_PATHS = ("file_path", "environments", "prices")
_OPENAI = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE")


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint; `base_url` None means the SDK's default.

    `key_from` and `url_from` name the settings that they came from, for messages.
    """

    model: str
    base_url: str | None
    api_key: str | None = field(repr=False)
    url_from: str | None = None
    key_from: str | None = None


@dataclass(frozen=True)
class Given:
    """A value that one source gave to one setting, as it stood there."""

    value: Any
    origin: str


_JsonArray = BeforeValidator(values.json_value(list, 'a JSON array of names, as in ["aime25","gsm8k"]'))
_JsonObject = BeforeValidator(
    values.json_value(dict, 'a JSON object, as in {"prompt": "problem", "response": "answer"}')
)
Seconds = Annotated[int, Field(ge=1)]
Price = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """All settings of ftloop. Made by `load`; `Settings()` has the defaults."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=False)

    file_path: Path = Field(
        default=Path("workspace"),
        description="Directory that holds all data, models, studies and outputs (the workspace).",
    )
    docker_enable_cache: bool = Field(
        default=False,
        description=(
            "True keeps the images of a study when it ends; False removes them, and they are built again when needed."
        ),
    )
    update_llama_factory: bool = Field(
        default=True,
        description=(
            "True lets a new study train with LLaMA-Factory's newest commit (docker runner only); "
            "False with the locked version."
        ),
    )
    benchmark_datasets: Annotated[tuple[str, ...], _JsonArray] = Field(
        default=("aime25",), description="Benchmarks, as a JSON array. Unset, a demo data set brings its own."
    )
    search_benchmarks: Annotated[tuple[str, ...], _JsonArray] = Field(
        default=(),
        description='Benchmarks to search with instead of halves, as in ["aime24","math"]; '
        "FT_BENCHMARK_DATASETS is then sealed whole.",
    )
    benchmark_limit: Annotated[int | None, Field(ge=1), BeforeValidator(values.limit)] = Field(
        default=None, description="Questions of each benchmark's search and test half; None or empty means all."
    )
    benchmark_samples: Annotated[int | None, Field(ge=1, le=64)] = Field(
        default=None, description="Answers a question, whose mean is its score. Unset: more where questions are few."
    )
    benchmark_timeout: Seconds = Field(default=3600, description="Seconds that one evaluation may take.")
    judge_model: str = Field(default="gpt-4", description="Model that marks answers where a benchmark needs a judge.")
    judge_api_key: SecretStr | None = Field(default=None, description="Key for the judge. Unset: as for the agent.")
    judge_api_base: str | None = Field(default=None, description="Base URL for the judge. Unset: as for the agent.")
    judge_price_input: Price = Field(
        default=None, description="Price of the judge's model in USD per million prompt tokens."
    )
    judge_price_output: Price = Field(
        default=None, description="Price of the judge's model in USD per million completion tokens."
    )
    contamination: Literal["remove", "refuse", "mark"] = Field(
        default="remove",
        description="Training rows that hold benchmark questions: remove them, refuse to train, or mark every score.",
    )
    debug_timeout: Seconds = Field(
        default=36000, description="Seconds that a mini-run (a few steps before training) may take."
    )
    full_timeout: Seconds = Field(default=360000, description="Seconds that one training may take.")
    chat_model: str = Field(default="gpt-4o-mini", description="Model that proposes what to try next.")
    chat_api_key: SecretStr | None = Field(
        default=None, description="Key for the agent's endpoint. Unset: OPENAI_API_KEY."
    )
    chat_api_base: str | None = Field(
        default=None, description="Base URL of the agent's endpoint. Unset: OPENAI_BASE_URL, else OPENAI_API_BASE."
    )
    context_tokens: int = Field(
        default=24_000, ge=4_000, description="Most tokens of the agent's prompt; what matters less is left out first."
    )
    strong_models: Annotated[str | None, AfterValidator(values.names)] = Field(
        default=None,
        description="Models at the agent's endpoint that data scripts ask as strong, with commas between them: the "
        "first, or the next where it fails. Unset: FT_CHAT_MODEL.",
    )
    weak_models: Annotated[str | None, AfterValidator(values.names)] = Field(
        default=None, description="The same for weak, cheaper ones. Unset: FT_CHAT_MODEL."
    )
    data_concurrency: Annotated[int, Field(ge=1, le=128)] = Field(
        default=8, description="Requests of a data script to one model at a time."
    )
    upper_data_size_limit: Annotated[int, Field(ge=10)] = Field(
        default=100_000,
        description="Most rows of a trial's data; of more that a script or its steps make, some are drawn.",
    )
    llm_timeout: Seconds = Field(default=300, description="Seconds to wait for one reply of an endpoint.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description="How much the agent's model thinks, where it is a reasoning model. Unset: its own."
    )
    price_input: Price = Field(default=None, description="Price of the agent's model in USD per million prompt tokens.")
    price_output: Price = Field(
        default=None, description="Price of the agent's model in USD per million completion tokens."
    )
    prices: Path | None = Field(
        default=None, description="YAML file of prices, written as agent/llm/prices.yaml, which it overrides."
    )
    max_cost: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = Field(
        default=None, description="US dollars that a study may spend on language models, over all calls."
    )
    max_gpu_hours: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = Field(
        default=None, description="GPU hours that a study may use, over all calls: time of its stages times GPUs."
    )
    runner: Literal["auto", "local", "docker"] = Field(
        default="auto", description="Where jobs run: docker, local, or auto (docker if an engine answers)."
    )
    proposer: Literal["auto", "llm", "tpe", "random", "hybrid"] = Field(
        default="auto",
        description="Who proposes: llm, tpe, random, hybrid (an llm for data and method, TPE for numbers), or auto "
        "(llm if an endpoint is configured, else tpe).",
    )
    proposer_seed: int = Field(default=0, ge=0, description="Seed of the proposer's random choices.")
    columns: Annotated[dict[str, str] | None, _JsonObject] = Field(
        default=None,
        description='Columns of the data set, as a JSON object: {"prompt": "problem", "response": "answer"}.',
    )
    template: str | None = Field(
        default=None,
        description="LLaMA-Factory template name. Unset: read from the model's own chat template. "
        "One that evaluation would not share is refused.",
    )
    cutoff_len: int = Field(default=2048, ge=16, description="Longest training example in tokens; longer ones are cut.")
    max_epochs: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="Most epochs (num_train_epochs) that a proposal may ask for.",
    )
    gpus: Annotated[str | None, AfterValidator(values.gpus), BeforeValidator(values.text)] = Field(
        default=None,
        description="GPUs for jobs: 0,1 as nvidia-smi counts them, UUIDs, or none. Unset: all that are visible.",
    )
    trial_disk: Annotated[str, AfterValidator(values.size), BeforeValidator(values.text)] = Field(
        default="100GB", description="What one job may write to the disk: 20GB, 20GiB, bytes, or none for no limit."
    )
    environments: Path = Field(
        default=Path("~/.cache/ftloop/environments"),
        description="Directory of the local runner's virtual environments.",
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _others: dict[str, str] = PrivateAttr(default_factory=dict)
    _openai: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` merged, because it knows the origin of each value and refuses unknown names."""
        return (init_settings,)

    @field_validator("benchmark_datasets", "search_benchmarks")
    @classmethod
    def _named_benchmarks(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if (not names and info.field_name == "benchmark_datasets") or not all(name.strip() for name in names):
            raise ValueError("name at least one benchmark, none of them empty")
        return tuple(dict.fromkeys(names))

    @field_validator("columns")
    @classmethod
    def _named_columns(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        if columns is not None and not (columns and all(role and column for role, column in columns.items())):
            raise ValueError("name at least one role and its column, none of them empty")
        return columns

    @field_validator("judge_api_base", "chat_api_base")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/\s]+", url):
            raise ValueError("must start with http:// or https:// and a host")
        return url

    def origin(self, name: str) -> str:
        """Where a setting's value came from: "command line", "environment", ".env:3", "lab.yaml:1" or "default"."""
        if name not in type(self).model_fields:
            raise KeyError(name)
        return self._origins.get(name, "default")

    @property
    def trial_disk_bytes(self) -> int | None:
        """FT_TRIAL_DISK in bytes; None for no limit."""
        return values.size_in_bytes(self.trial_disk)

    def notes(self) -> list[str]:
        """What the user should be told once about these settings."""
        if self.origin("file_path") == "default":
            return [f"FT_FILE_PATH is not set: everything is kept in {self.file_path}"]
        return []

    def chat_endpoint(self) -> Endpoint | None:
        """The agent's endpoint; None where neither a key nor a base URL is configured."""
        return self._endpoint(self.chat_model, "chat")

    def data_endpoints(self) -> dict[str, list[Endpoint]]:
        """What data scripts may ask by role, in the order of trial; empty where no endpoint is configured."""
        roles = {"strong": self.strong_models, "weak": self.weak_models}
        if self.chat_endpoint() is None:
            return {}
        asked = {role: (given or self.chat_model).split(",") for role, given in roles.items()}
        found = {role: [self._endpoint(model, "chat") for model in models] for role, models in asked.items()}
        return {role: list(filter(None, endpoints)) for role, endpoints in found.items()}

    def judge_endpoint(self) -> Endpoint | None:
        """The judge's endpoint, else the agent's with the judge's model; None where nothing is configured."""
        return self._endpoint(self.judge_model, "judge", "chat")

    def _endpoint(self, model: str, *owners: str) -> Endpoint | None:
        """The first owner with a key or a URL, completed from OPENAI_*; no owner's key is sent to another's URL."""
        for owner in owners:
            secret: SecretStr | None = getattr(self, f"{owner}_api_key")
            key, url = (secret.get_secret_value() if secret else None), getattr(self, f"{owner}_api_base")
            if key or url:
                key_from, url_from = f"{PREFIX}{owner.upper()}_API_KEY", f"{PREFIX}{owner.upper()}_API_BASE"
                break
        else:
            key, url, key_from, url_from = None, None, "", ""
        if not key and (key := self._openai.get("OPENAI_API_KEY")):
            key_from = "OPENAI_API_KEY"
        if not url and (url_name := next((name for name in _OPENAI[1:] if self._openai.get(name)), None)):
            url, url_from = self._openai[url_name], url_name
        if not key and not url:
            return None
        return Endpoint(model, url, key, url_from if url else None, key_from if key else None)

    def workspace(self) -> Path:
        """Make the workspace's layout and return its root; UsageError where it cannot be written."""
        root = self.file_path
        try:
            for directory in (root, *(root / name for name in LAYOUT)):
                directory.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=directory):
                    pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise MachineError(f"no space left for the workspace {root}", "free some disk space") from error
            raise UsageError(
                f"the workspace {root} cannot be written: {error.strerror or error} ({error.filename or root}); "
                f"FT_FILE_PATH is from: {self.origin('file_path')}",
                "set FT_FILE_PATH to a directory that you may write to",
            ) from error
        return root

    def export(self, environ: MutableMapping[str, str]) -> None:
        """Give `environ` what .env holds beside FT_ names (HF_TOKEN, HF_ENDPOINT, ...), as `dotenv run` would.

        Names that are already there are kept. Call it before huggingface_hub is imported, which reads them once.
        """
        for name, value in self._others.items():
            environ.setdefault(name, value)


def load(cli: Mapping[str, Any], config: Path | None, environ: Mapping[str, str], cwd: Path) -> Settings:
    """All settings of one call, from every source.

    Args:
        cli: Values given on the command line, by field name; None values count as not given.
        config: YAML file, or None.
        environ: The process's environment.
        cwd: Directory whose .env is read and that relative paths start from.

    Raises:
        UsageError: A file cannot be read, an FT_ name is unknown, or a value is bad.
    """
    dotenv, others = _read_dotenv(cwd / ".env", environ)
    layers = [
        _read_yaml(cwd / config.expanduser(), str(config)) if config is not None else {},
        dotenv,
        _known((key, Given(value, "environment")) for key, value in environ.items() if key.startswith(PREFIX)),
        {name: Given(value, "command line") for name, value in cli.items() if value is not None},
    ]
    given: dict[str, Given] = {}
    for layer in layers:
        given.update((name, one) for name, one in layer.items() if not _counts_as_unset(name, one.value))
    try:
        settings = Settings(**{name: one.value for name, one in given.items()})
    except ValidationError as error:
        raise _bad_value(error, given) from None  # its chain would show the input, secrets included
    settings = settings.model_copy(update={name: _absolute(settings, name, given, cwd) for name in _PATHS})
    settings._origins.update((name, one.origin) for name, one in given.items())
    settings._others.update((name, value) for name, value in others.items() if name not in environ)
    settings._openai.update((name, value) for name in _OPENAI if (value := environ.get(name) or others.get(name)))
    return settings


def _absolute(settings: Settings, name: str, given: Mapping[str, Given], cwd: Path) -> Path | None:
    path: Path | None = getattr(settings, name)
    if path is None:
        return None
    try:
        return Path(os.path.normpath(cwd / path.expanduser()))
    except RuntimeError as error:
        origin = given[name].origin if name in given else "default"
        raise UsageError(f"{origin}: {PREFIX}{name.upper()}: '{path}': {error}", "write the path in full") from None


def settings_table() -> list[tuple[str, str, str]]:
    """(name, default as written in .env, description) of every setting, in the order of the class."""
    return [
        (PREFIX + name.upper(), _written(info.default), info.description or "")
        for name, info in Settings.model_fields.items()
    ]


def _written(default: Any) -> str:
    if default is None:
        return ""
    return json.dumps(default) if isinstance(default, tuple | dict) else str(default)


def _counts_as_unset(name: str, value: Any) -> bool:
    """An empty value is no value: `FT_X=` and a blank YAML key fall through. Only an empty limit says something."""
    return (value is None or (isinstance(value, str) and not value.strip())) and name != "benchmark_limit"


def _known(found: Iterable[tuple[str, Given]]) -> dict[str, Given]:
    """Field name -> value; UsageError for a name that is no setting."""
    return {_field_name(key, given.origin): given for key, given in found}


def _field_name(key: str, origin: str) -> str:
    name = key.removeprefix(PREFIX).lower()
    if name in Settings.model_fields and key in (name, PREFIX + name.upper()):
        return name
    names = [PREFIX + known.upper() for known in Settings.model_fields]
    nearest = difflib.get_close_matches(PREFIX + name.upper(), names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the settings are {', '.join(names)}"
    raise UsageError(f"{origin}: {key} is not a setting of ftloop", hint)


def _read_text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UsageError(f"{shown} cannot be read: {reason}", f"check the file {path}") from error


def _read_dotenv(path: Path, environ: Mapping[str, str]) -> tuple[dict[str, Given], dict[str, str]]:
    """The settings in a .env file, and its other names; both empty where there is no such file."""
    from io import StringIO

    from dotenv.parser import parse_stream
    from dotenv.variables import parse_variables

    if not path.is_file():
        return {}, {}
    settings: list[tuple[str, Given]] = []
    others: dict[str, str] = {}
    seen: dict[str, str | None] = dict(environ)
    for binding in parse_stream(StringIO(_read_text(path, path.name))):
        text = binding.original.string
        line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        if binding.error:
            raise UsageError(f"{path.name}:{line}: not a line of the form NAME=value", f"correct it in {path}")
        if binding.key is None:
            continue
        value = "".join(atom.resolve(seen) for atom in parse_variables(binding.value or ""))
        seen[binding.key] = value
        if binding.key.startswith(PREFIX):
            settings.append((binding.key, Given(value, f"{path.name}:{line}")))
        elif binding.value is not None:
            others[binding.key] = value
    return _known(settings), others


def _read_yaml(path: Path, shown: str) -> dict[str, Given]:
    """The settings in a YAML file; keys are FT_FILE_PATH or file_path. Other names in capitals are let through."""
    import yaml

    text = _read_text(path, shown)
    try:
        node, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}:{mark.line + 1}" if mark else shown
        raise UsageError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}", "correct it") from None
    if node is None or values is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{shown}: must hold one mapping of settings", "write one `file_path: value` a line")
    found: dict[str, Given] = {}
    for key_node, _ in node.value:
        key, origin = str(key_node.value), f"{shown}:{key_node.start_mark.line + 1}"
        if re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+", key) and not key.startswith(PREFIX):
            continue
        name = _field_name(key, origin)
        if name in found:
            raise UsageError(f"{origin}: {key} is given twice (also at {found[name].origin})", "keep one of them")
        found[name] = Given(values.get(key), origin)
    return found


def _bad_value(error: ValidationError, given: Mapping[str, Given]) -> UsageError:
    """The first problem as a UsageError that names source, key and value, but never shows a secret."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(problem["loc"][0])
    info = Settings.model_fields[name]
    reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    # A key that was pasted into the URL's place is the likeliest mistake there.
    hidden = SecretStr in get_args(info.annotation) or name.endswith("_api_base")
    value = "its value (not shown)" if hidden else repr(given[name].value)
    hint = f"{info.description} Default: {_written(info.default) or 'unset'}"
    return UsageError(f"{given[name].origin}: {PREFIX}{name.upper()}: {value}: {reason}", hint)
