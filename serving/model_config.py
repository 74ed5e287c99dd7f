"""The file that tells a model server which versions to serve and what to call them, kept as the registry's labels say.

A server that polls the file moves a label only to a version that it has loaded. So while a label moves, the file lists
the version that had it, too, and that one goes when the server has moved the label: no request falls between.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

from serving.registry import STABLE, Registry, RegistryError


def model_config(name: str, base_path: str, versions: Iterable[int], labels: Mapping[str, int]) -> str:
    """A ModelServerConfig of one model in protobuf's text format; versions are always named.

    Args:
        name: of the model.
        base_path: absolute, as the server sees it.
        versions: to load.
        labels: label -> one of `versions`.
    """
    specific = "".join(f" versions: {version}" for version in sorted(versions))
    labelled = "".join(
        f"    version_labels {{ key: {_quoted(label)} value: {version} }}\n"
        for label, version in sorted(labels.items())
    )
    return (
        "model_config_list {\n  config {\n"
        f"    name: {_quoted(name)}\n"
        f"    base_path: {_quoted(base_path)}\n"
        '    model_platform: "tensorflow"\n'
        f"    model_version_policy {{ specific {{{specific} }} }}\n"
        f"{labelled}  }}\n}}\n"
    )


class LiveConfig:
    """The file of one model server, see above.

    Args:
        registry: whose labels are served; its directory has the name of the model.
        file: is written; the server must poll it.
        server: `http://host:port` of the server's REST.
        say: is told in a sentence what happens.
    """

    def __init__(self, registry: Registry, file: Path, server: str, say: Callable[[str], None]):
        self._registry, self.file = registry, file
        self._name = registry.base.name
        self._url = f"{server}/v1/models/{self._name}"
        self._say = say
        self._labels: dict[str, int] = {}
        self._versions: set[int] = set()
        self._told: set[str] = set()

    @property
    def ready(self) -> str:
        """URL that answers 200 while stable serves. That of the model would do so while it is loading."""
        return f"{self._url}/labels/{STABLE}/metadata"

    def start(self) -> dict[str, int]:
        """Writes the file before the server starts; returns label -> version.

        Raises:
            RegistryError: nothing can serve as stable.
        """
        self._labels = self._wanted()
        self._write(set(self._labels.values()))
        return self._labels

    def follow(self) -> None:
        """Looks whether labels have moved, and brings the file a step further. What is wrong is said, once."""
        try:
            labels = self._wanted()
        except RegistryError as error:
            self._say_once(str(error))
            return
        if labels != self._labels:
            self._told.clear()
            for label, version in sorted(labels.items() - self._labels.items()):
                self._say(f"{label} moves to version {version}, as soon as it is loaded")
            self._labels = labels
            self._write(self._versions | set(labels.values()))
        elif self._versions != set(labels.values()):
            self._finish()

    def _finish(self) -> None:
        """Drops the versions that had the labels before, if the server has moved all."""
        waiting = {label: version for label, version in self._labels.items() if not self._serves(label, version)}
        for label, version in waiting.items():
            for told in self._get(f"/versions/{version}").get("model_version_status", []):
                if told["state"] == "END" and told["status"]["error_message"]:
                    self._say_once(
                        f"{label} stays: version {version} cannot be loaded: {told['status']['error_message']}"
                    )
        if not waiting:
            self._say(", ".join(f"version {version} is {label}" for label, version in sorted(self._labels.items())))
            self._write(set(self._labels.values()))

    def _serves(self, label: str, version: int) -> bool:
        return self._get(f"/labels/{label}/metadata").get("model_spec", {}).get("version") == str(version)

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return httpx.get(self._url + path, timeout=5, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return {}  # asked again in a second

    def _wanted(self) -> dict[str, int]:
        there = self._registry.versions()
        labels = {label: version for label, version in self._registry.labels().items() if version in there}
        if STABLE not in labels:
            gone = self._registry.stable()
            raise RegistryError(
                f"{self._registry.base}: the stable version {gone} is gone; `catbreeds promote` another one"
                if gone
                else f"{self._registry.base}: no model is in service there; `catbreeds run` trains and pushes one"
            )
        return labels

    def _write(self, versions: set[int]) -> None:
        self._versions = versions
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}")
        base_path = str(self._registry.base.resolve())
        temporary.write_text(model_config(self._name, base_path, versions, self._labels), encoding="utf-8")
        os.replace(temporary, self.file)

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
