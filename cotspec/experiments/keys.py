"""What a cell's weights and predictions depend on, as digests.

Enters: a cell, the artifacts and settings it uses. Leaves: SHA-256 digests that name
its folder and files. A change that cannot change a result does not change its digest.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata

import pyarrow as pa
import torch
from datasets import Dataset

from cotspec import artifacts, selection, stages
from cotspec.experiments.grid import Cell
from cotspec.experiments.jobs import Inputs, Settings
from cotspec.models import Student

# Fields of the evaluation section that say what is tested, not how it is decoded.
_NOT_DECODING = ("math_prompt_modes", "generic_prompt_modes", "confidence")


def dataset_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of a table's columns and rows."""
    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def student_digest(student: Student) -> str:
    """Return the SHA-256 of a freshly loaded student's weights and tokenizer."""
    digest = hashlib.sha256(student.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(student.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class Keys:
    """The digests of one call; what several cells share is hashed once."""

    def __init__(self, inputs: Inputs, settings: Settings) -> None:
        self.inputs, self.settings = inputs, settings
        self._tables: dict[object, str] = {}
        self._units: dict[tuple[str, str, str], str] = {}

    def cell(self, cell: Cell, base: str) -> str:
        """Return what the weights of a trained cell depend on.

        Parameters
        ----------
        cell : Cell
        base : str
            `student_digest` of the student it starts from.
        """
        is_sample = cell.loss.name == "sample_matching"
        loss = {"name": cell.loss.name} if is_sample else dataclasses.asdict(cell.loss)
        aligned = self.inputs.aligned_of(cell)
        parts = {
            "base": [cell.model, cell.start, base],
            "seed": cell.seed,
            "loss": loss,
            "training": dataclasses.asdict(self.settings.training),
            "max_input_tokens": self.settings.formats.max_input_tokens,
            "examples": self._examples(cell),
            "aligned": aligned and self._table(cell.alignment, aligned),
            "sources": _sources("cotspec.training"),
            "packages": _packages(),
        }
        return artifacts.digest_of(parts)

    def unit(self, split: str, task: str, prompt_mode: str) -> str:
        """Return what the predictions of one task depend on, the weights aside."""
        name = split, task, prompt_mode
        if name not in self._units:
            self._units[name] = self._unit(*name)
        return self._units[name]

    def _unit(self, split: str, task: str, prompt_mode: str) -> str:
        problems = self.inputs.problems_of(split, task)
        shown = selection.demonstrations_by_task(self.inputs.demonstrations, problems)
        said = selection.descriptions_by_task(self.inputs.demonstrations)
        config = dataclasses.asdict(self.settings.evaluation)
        parts = {
            "problems": self._table((split, task), problems),
            "prompt_mode": prompt_mode,
            "demonstrations": [vars(d) for d in shown[task]],
            "description": said.get(task, ""),
            "evaluation": {k: v for k, v in config.items() if k not in _NOT_DECODING},
            "sources": _sources("cotspec.evaluation"),
            "packages": _packages(),
        }
        return artifacts.digest_of(parts)

    def _examples(self, cell: Cell) -> str:
        if cell.data_formats not in self._tables:
            examples = self.inputs.examples_of(cell)
            self._tables[cell.data_formats] = dataset_digest(examples)
        return self._tables[cell.data_formats]

    def _table(self, name: object, table: Dataset) -> str:
        if name not in self._tables:
            self._tables[name] = dataset_digest(table)
        return self._tables[name]


@functools.cache
def _sources(module: str) -> str:
    return stages.sources_digest(module)


@functools.cache
def _packages() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate")
    return {name: importlib.metadata.version(name) for name in names}
