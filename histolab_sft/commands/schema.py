"""The JSON schema of a recipe, with which editors complete and check its keys."""

import dataclasses
import typing

import trl
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.checks import RANGES
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.external import ExternalConfig, list_external_keys
from histolab_sft.config.phase import PhaseConfig


class _AnyElse(GenerateJsonSchema):
    """Takes any value where a type of the libraries has no counterpart in JSON."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def handle_invalid_for_json_schema(self, schema, error_info):
        return {}


def build_schema() -> dict:
    """Return the schema: every key of the classes that read a recipe, with its type, help, choices and bounds."""
    keys = {}
    for kind in (trl.SFTConfig, ModelConfig, HistoArguments):
        keys |= _describe_keys(kind)
    keys["datasets"] |= {"type": "array", "minItems": 1, "items": _describe_entry(DatasetConfig)}
    cohort = _describe_entry(ExternalConfig)
    cohort["properties"] = {name: cohort["properties"][name] for name in list_external_keys()}
    keys["external"] |= {"type": "array", "items": cohort}
    keys["phases"] |= {"type": "array", "items": _describe_entry(PhaseConfig)}
    for name in ("datasets", "external", "phases"):
        keys[name].pop("anyOf", None)
    keys["seeds"]["anyOf"].append({"type": "integer", "minimum": 1})
    shared = {}
    for key in keys.values():
        shared |= key.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of histolab_sft",
        "type": "object",
        "required": ["datasets"],
        "additionalProperties": False,
        "properties": keys,
        "$defs": shared,
    }


def _describe_entry(kind: type) -> dict:
    fields = [entry for entry in dataclasses.fields(kind) if entry.init]
    needed = [entry.name for entry in fields if entry.default is dataclasses.MISSING]
    return {
        "type": "object",
        "required": needed,
        "additionalProperties": False,
        "properties": _describe_keys(kind),
    }


def _describe_keys(kind: type) -> dict[str, dict]:
    hints = typing.get_type_hints(kind)
    keys = {}
    for entry in dataclasses.fields(kind):
        if not entry.init:
            continue
        adapter = TypeAdapter(hints[entry.name], config={"arbitrary_types_allowed": True})
        key = adapter.json_schema(schema_generator=_AnyElse)
        if text := entry.metadata.get("help"):
            key["description"] = " ".join(text.split())
        if choices := entry.metadata.get("choices"):
            key = {"description": key["description"], "enum": [*choices, *([None] if entry.default is None else [])]}
        low, high = RANGES.get(entry.name, (None, None))
        key |= {bound: value for bound, value in (("minimum", low), ("maximum", high)) if value is not None}
        keys[entry.name] = key
    return keys
