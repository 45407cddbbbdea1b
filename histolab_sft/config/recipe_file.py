"""Read the YAML of a recipe, with labels and class names as text, whatever YAML would make of them."""

from dataclasses import fields
from pathlib import Path

import yaml

from histolab_sft.config.external import ExternalConfig

# Keys of a data set under which all keys and values are text.
WORDS = ("class_names", "splits")
MOST_VALUES = 100_000
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def read_recipe(path: str) -> dict:
    """Return the keys and values of a recipe's YAML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It isn't YAML in UTF-8, holds no mapping, or has a key twice.
    """
    try:
        recipe = read_yaml(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested deeper than any recipe; write it flat") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        near = ", ".join(sorted(map(str, Path(path).parent.glob("*.yaml")))) or "no recipe"
        raise FileNotFoundError(f"{path} is no file, expected a recipe; in its folder: {near}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as such"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} can't be read as YAML: {_place_yaml_error(error)}; correct it there") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds {type(recipe).__name__}, expected a mapping of keys to values")
    return recipe


def read_yaml(text: str) -> object:
    """Return what a YAML text holds; in data sets, labels, class names and other names stay text as written.

    YAML by itself reads `No` as false, `null` as nothing, `01` as 1, `1e3` as 1000 and `2026-01-01` as a date.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(root)
        for key, value in _pairs(root):
            if key.value in ("datasets", "external") and isinstance(value, yaml.SequenceNode):
                for entry in value.value:
                    _keep_words(entry, with_null=key.value == "external")
            if key.value == "prior_correction":
                for name, shares in _pairs(value):
                    for word in (name, *(label for label, _ in _pairs(shares))):
                        _make_text(word)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    """Raise ValueError for a key that a mapping has twice, and for aliases that unfold to too many values."""
    sizes: dict[int, int] = {}

    def measure(node: yaml.Node, above: tuple[int, ...]) -> int:
        line = node.start_mark.line + 1
        if id(node) in above:
            raise ValueError(f"the alias in line {line} stands for itself; write the values out")
        if id(node) not in sizes:
            children = []
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                if twice := [key for key in keys if keys.count(key) > 1]:
                    raise ValueError(f"the key {twice[0]!r} stands twice in the mapping of line {line}; remove one")
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes[id(node)] = 1 + sum(measure(child, (*above, id(node))) for child in children)
        if sizes[id(node)] > MOST_VALUES:
            raise ValueError(
                f"what begins in line {line} unfolds to more than {MOST_VALUES:,} values; use fewer aliases"
            )
        return sizes[id(node)]

    measure(root, ())


def _keep_words(entry: yaml.Node, with_null: bool) -> None:
    """Mark the labels, class names and text keys of a data set as text, in place.

    Args:
        with_null (`bool`): Whether null under a label means nothing, and not a class of that name.
    """
    text_keys = {field.name for field in fields(ExternalConfig) if field.type in (str, str | None)}
    for key, value in _pairs(entry):
        if key.value in WORDS and isinstance(value, yaml.MappingNode):
            for pair in _pairs(value):
                for node in pair[: 1 if with_null and pair[1].tag == NULL else 2]:
                    for scalar in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                        _make_text(scalar)
        elif key.value in text_keys and value.tag != NULL:
            _make_text(value)


def _make_text(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.tag = TEXT


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return keys and values of a mapping, without those merged into it by `<<`, which another mapping holds."""
    if not isinstance(node, yaml.MappingNode):
        return []
    return [pair for pair in node.value if not pair[0].tag.endswith(":merge")]


def _place_yaml_error(error: yaml.YAMLError) -> str:
    """Return what YAML found and expected, in one line, with line and column."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).replace("\n", " ")
    mark = error.problem_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"
