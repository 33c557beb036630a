"""What a model costs: by the user, a file of the user, the table that comes with ftloop; on a private network nothing.

A price that none of them knows ends the call before anything is spent.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from agent.errors import UsageError
from agent.llm.endpoint import OPENAI_URL, Endpoint, Price

TABLE = Path(__file__).with_name("prices.yaml")
ANY = "*"
"""The host of a user's file whose prices hold for every endpoint."""

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$")


class _Tariff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    output: Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class _Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, _Tariff]
    date: datetime.date | None = None


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """A price and where it was read ("prices.yaml of 2026-03-01", "FT_PRICE_INPUT, FT_PRICE_OUTPUT", ...)."""

    price: Price
    source: str


def quote(endpoint: Endpoint, given: Price, table: Path | None = None, prefix: str = "FT") -> Quote:
    """What the endpoint's model costs.

    Args:
        given: The user's price. Half of one is completed from a table.
        table: The user's own file of prices.
        prefix: Of the settings that hold a price for this endpoint ("FT_JUDGE" for FT_JUDGE_PRICE_INPUT); empty where
            none do.

    Raises:
        UsageError: The price is not known, or `table` cannot be read.
    """
    names = f"{prefix}_PRICE_INPUT and {prefix}_PRICE_OUTPUT"
    if given.input is not None and given.output is not None:
        return Quote(price=given, source=names)
    for file in filter(None, (table, TABLE)):
        if (found := _listed(_read(file), endpoint)) is not None:
            tariff, date = found
            price = Price(
                input=tariff.input if given.input is None else given.input,
                output=tariff.output if given.output is None else given.output,
            )
            mine = f"{names} and " if given != Price() else ""
            return Quote(price=price, source=f"{mine}{file.name}{f' of {date}' if date else ''}")
    if endpoint.local and given == Price():
        return Quote(price=Price(input=0.0, output=0.0), source="a private address")
    own = f"set {names} (US dollars per million tokens; 0 where nobody is billed), or " if prefix else ""
    raise UsageError(
        f"the price of {endpoint.model} at {endpoint.address} is not known",
        f"{own}name a file of prices in FT_PRICES",
    )


def _listed(hosts: dict[str, _Host], endpoint: Endpoint) -> tuple[_Tariff, datetime.date | None] | None:
    """The model's price at this host, under its own name or that of its family."""
    host = urlsplit(endpoint.base_url or OPENAI_URL).hostname or ""
    for listed in (hosts.get(host), hosts.get(ANY)):
        for name in (endpoint.model, _SNAPSHOT.sub("", endpoint.model)):
            if listed is not None and name in listed.models:
                return listed.models[name], listed.date
    return None


def _read(file: Path) -> dict[str, _Host]:
    import yaml

    hint = f"write it as {TABLE} is written: a host, below it `models:`, and `name: {{input: 0.15, output: 0.60}}`"
    try:
        return msgspec.convert(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, dict[str, _Host])
    except (yaml.YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: no table of prices: {' '.join(str(error).split())[:300]}", hint) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", "FT_PRICES names a YAML file of prices") from None
