"""This door's OpenAPI document beside the one recorded of A1111 1.10.1: what stands there stands here, or is listed below."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from renderjobs.compat.sdapi.urls import PREFIXES
from tests.engine.recordings import A1111, needs_recordings

MACHINE = "It tells where files lie on the machine, which is nobody's business."
PAGE_TEXT = "A text of the webui's page, which is not here; A1111's own GET leaves it out."
DIFFERENCES = {
    **{
        f"get /sdapi/v1/cmd-flags answers.{name}: default": MACHINE
        for name in (
            "data_dir", "config", "ckpt", "gfpgan_dir", "embeddings_dir", "textual_inversion_templates_dir",
            "hypernetwork_dir", "localizations_dir", "codeformer_models_path", "gfpgan_models_path",
            "esrgan_models_path", "bsrgan_models_path", "realesrgan_models_path", "dat_models_path", "ui_config_file",
            "ui_settings_file", "gradio_allowed_path", "styles_file", "ldsr_models_path", "lora_dir",
            "lyco_dir_backcompat", "scunet_models_path", "swinir_models_path",
        )
    },
    "get /sdapi/v1/cmd-flags answers.gradio_allowed_path: type": "It is null here, not a list of folders.",
    "get /sdapi/v1/cmd-flags answers.gradio_allowed_path: items": "It is null here, not a list of folders.",
    "get /sdapi/v1/cmd-flags answers.styles_file: type": "It is null here, not a list of files.",
    "get /sdapi/v1/cmd-flags answers.styles_file: items": "It is null here, not a list of files.",
    "get /sdapi/v1/cmd-flags answers.api: default": "The API is always on.",
    **{
        f"get /sdapi/v1/options answers.{name}: missing": PAGE_TEXT
        for name in ("infotext_explanation", "profiling_explanation", "sd_vae_explanation")
    },
    **{
        f"post /sdapi/v1/{name}: 422": "Training is refused whatever the body says."
        for name in ("create/embedding", "create/hypernetwork", "train/embedding", "train/hypernetwork")
    },
}  # fmt: skip
"""Place → why it is so here. ``title`` is not compared: it is a label for the page."""


@pytest.fixture
def ours(client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


@pytest.fixture
def theirs() -> dict[str, Any]:
    return json.loads((A1111 / "api" / "openapi_without_descriptions.json").read_text())


def opened(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference stands for."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


class Comparison:
    def __init__(self, ours: dict[str, Any], theirs: dict[str, Any]):
        self.ours, self.theirs = ours, theirs

    def differences(self) -> Iterator[str]:
        """Of every call that the recorded document has."""
        for path, methods in self.theirs["paths"].items():
            for method, there in methods.items():
                here = self.ours["paths"].get(path, {}).get(method)
                place = f"{method} {path}"
                if here is None:
                    yield f"{place}: missing"
                    continue
                yield from self.of_queries(place, here.get("parameters", []), there.get("parameters", []))
                yield from self.of_bodies(place, here.get("requestBody"), there.get("requestBody"))
                for status, answer in there["responses"].items():
                    given = here["responses"].get(status)
                    yield from self.of_contents(f"{place} answers", given, answer) if given else [f"{place}: {status}"]

    def of_queries(self, place: str, here: list[Any], there: list[Any]) -> Iterator[str]:
        known = {each["name"]: each for each in here}
        for parameter in there:
            found = known.get(parameter["name"])
            if found is None or (found["in"], found["required"]) != (parameter["in"], parameter["required"]):
                yield f"{place}?{parameter['name']}: missing"
            else:
                yield from self.of_schemas(f"{place}?{parameter['name']}", found["schema"], parameter["schema"])

    def of_bodies(self, place: str, here: Any, there: Any) -> Iterator[str]:
        if (here is None) != (there is None) or (here and here["required"] != there["required"]):
            yield f"{place} reads: missing"
        elif there is not None:
            yield from self.of_contents(f"{place} reads", here, there)

    def of_contents(self, place: str, here: Any, there: Any) -> Iterator[str]:
        for content_type, content in there["content"].items():
            schema = here["content"].get(content_type, {}).get("schema")
            if schema is None:
                yield f"{place}: {content_type}"
            else:
                yield from self.of_schemas(place, schema, content["schema"])

    def of_schemas(self, place: str, here: Any, there: Any) -> Iterator[str]:
        here, there = opened(self.ours, here), opened(self.theirs, there)
        if "oneOf" in here:
            here = opened(self.ours, here["oneOf"][0])
        for name, schema in there.get("properties", {}).items():
            if name not in here.get("properties", {}):
                yield f"{place}.{name}: missing"
            else:
                yield from self.of_schemas(f"{place}.{name}", here["properties"][name], schema)
        for word in ("items", "additionalProperties"):
            if isinstance(there.get(word), dict):
                if word not in here:
                    yield f"{place}: {word}"
                else:
                    yield from self.of_schemas(f"{place}[]", here[word], there[word])
        wanted, given = set(there.get("required", ())), set(here.get("required", ()))
        if given != wanted if " reads" in place else not wanted <= given:
            yield f"{place}: required"
        limits = {"type", "default", "enum", "minimum", "maximum"} & there.keys()
        yield from (f"{place}: {word}" for word in sorted(limits) if here.get(word) != there[word])


@needs_recordings
@pytest.mark.django_db
def test_every_path_field_type_and_default_of_a1111_is_here_or_its_absence_is_justified(ours, theirs):
    assert set(Comparison(ours, theirs).differences()) == set(DIFFERENCES)


@pytest.mark.django_db
def test_the_document_validates_and_names_every_route_of_the_door(ours):
    validate(ours)
    routes = {f"/{prefix}/{name}" for prefix, names in PREFIXES.items() for name in names}
    assert set(ours["paths"]) == {re.sub(r"<str:(\w+)>", r"{\1}", route) for route in routes}


@pytest.mark.django_db
def test_the_page_of_the_document_is_where_a1111_has_it(client):
    page, script = (client.get(address).content.decode() for address in ("/docs", "/docs?script="))
    assert "swagger" in page and 'src="/docs?script="' in page and "https://" not in page
    assert "/openapi.json" in script and "https://" not in script
