"""A plan turned into the inputs of the stages: which slices of data, which models, which options each one takes."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property
from typing import Any

from mergeline.comparison import CONTROL_DATA, Row, aligns, comparison_rows
from mergeline.errors import InputError
from mergeline.evaluation.kinds import PROTOTYPES, SEQ2SEQ, is_function
from mergeline.plan import Align, BalanceSearch, Calibration, Checkpoint, Dataset, Plan, Task
from mergeline.report.result import RowScores
from tasks.architecture import ArchitectureSpec, rule_version, specify
from tasks.checkpoints import resolved, size_of
from tasks.code_version import code_version, installed
from tasks.domains import Domain, Question
from tasks.evidence import TaskData
from tasks.inputs import DataSlice, Texts, take_prototypes, take_slice
from tasks.merge_inputs import MergeInputs
from tasks.merging import evidence_of, merge_models
from tasks.policy import at_hand
from tasks.store import ArtifactRef


class Job:
    """One run of a plan. Making it brings the data sets into the content store."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._specified = specify(plan.architecture, plan.heads) if plan.architecture else None
        self.domains = self.domains_on()

    @property
    def architecture(self) -> ArchitectureSpec:
        """How to build the module. InputError where the plan does not say."""
        if self._specified is None:
            raise InputError("architecture: is missing; this plan can only be merged")
        return self._specified

    @cached_property
    def calibration(self) -> DataSlice:
        """The calibration data. InputError where the plan has none."""
        return self._calibration(self._calibration_options.where)

    @cached_property
    def rows(self) -> dict[str, Row]:
        """The rows of the table by name, the plan's own merge last."""
        return {row.name: row for row in comparison_rows(self.plan)}

    @cached_property
    def control_data(self) -> DataSlice | None:
        """The data of another domain that a control is calibrated on; None where the table has no such row."""
        given = self.plan.calibrate.control_data if self.plan.calibrate else None
        if given is None or CONTROL_DATA not in self.rows:
            return None
        return take_slice(self.plan.datasets[given.dataset], given.split, given.where)

    @property
    def calibrates(self) -> bool:
        """Whether there are a module and data to measure normalisation statistics with."""
        return self._specified is not None and self.plan.calibration is not None

    def source(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Arguments of the download of one checkpoint."""
        uri, version = resolved(checkpoint)
        return {
            "name": checkpoint.name,
            "uri": uri,
            "sha256": checkpoint.sha256,
            "version": version,
            "max_bytes": int(self.plan.download.max_gigabytes * 1e9),
        }

    @property
    def calibration_inputs(self) -> dict[str, Any]:
        """Arguments of the stages that run models over the calibration data of all domains."""
        return {
            "architecture": self.architecture,
            "calibration": self.calibration,
            "batch_size": self._calibration_options.batch_size,
        }

    @property
    def symmetry_rule(self) -> dict[str, Any]:
        """Arguments of the proof of the unit symmetry."""
        rule = self.plan.architecture.symmetry if self.plan.architecture else None
        return {
            "architecture": self.architecture,
            "rule": rule,
            "rule_version": rule_version(rule),
            "inputs": self.calibration,
        }

    def representatives(self, checkpoints: dict[str, ArtifactRef]) -> dict[str, list[ArtifactRef]]:
        """For each family the checkpoints to find the alignment on: its base, or the task models of that base."""
        plan = self.plan
        if plan.align is not None and plan.align.found_on == "bases":
            return {family: [checkpoints[family]] for family in plan.families}
        members = {
            family: [model.name for model in plan.task_models if family in (model.base, model.name)]
            for family in plan.families
        }
        return {family: [checkpoints[name] for name in names] for family, names in members.items()}

    def merge_inputs(self, row: Row, checkpoints: dict[str, ArtifactRef], alignment: ArtifactRef | None) -> MergeInputs:
        """The task models of a row, and their bases where its method needs them."""
        from mergeline.merging.registry import get

        families = {model.name: model.base or model.name for model in self.plan.task_models}
        needs_base, from_start = get(row.merge.method).needs_base, self.plan.from_start
        return MergeInputs(
            models=[checkpoints[name] for name in row.members],
            bases=[checkpoints[families[name]] for name in row.members] if needs_base and not from_start else [],
            families=[self.plan.families.index(families[name]) for name in row.members],
            alignment=alignment if row.aligned else None,
            from_start=needs_base and from_start,
            vocabulary=row.merge.vocabulary,
            heads=self.plan.heads,
        )

    def heads(self, checkpoints: dict[str, ArtifactRef], alignment: ArtifactRef | None) -> dict[str, MergeInputs]:
        """Task -> the model whose head answers it, in the unit order of the models that are given the head."""
        families = {model.name: self.plan.family_of(model) for model in self.plan.task_models}
        return {
            task.name: MergeInputs(
                models=[checkpoints[task.checkpoint]],
                bases=[],
                families=[families[task.checkpoint]],
                alignment=alignment,
            )
            for task in self.plan.tasks
            if task.head is not None and task.checkpoint is not None
        }

    def heads_to_publish(
        self, checkpoints: dict[str, ArtifactRef], alignment: ArtifactRef | None
    ) -> dict[str, dict[str, Any]]:
        """Arguments of the stages that take the tasks' heads, as they fit the plan's own merge."""
        named = {task.name: task.head for task in self.plan.tasks}
        return {
            task: {"model": model, "head": named[task]} for task, model in self.heads(checkpoints, alignment).items()
        }

    def evidence(self, row: Row, inputs: MergeInputs) -> dict[str, dict[str, Any]]:
        """For each model that a row merges, or for all together, the arguments of what is measured of it; {} where the
        method asks nothing.

        Models of the first family keep their unit order, whether the row is aligned or not.
        """
        kind, options = evidence_of(row.merge), row.merge.evidence
        if kind is None:
            return {}
        shared = {
            "architecture": self.architecture,
            "batches": options.batches,
            "batch_size": self._calibration_options.batch_size,
        }
        tasks = {
            name: [self._task_data(task, options.split) for task in self.plan.tasks if task.checkpoint == name]
            for name in row.members
        }
        if kind == "merged_gram":
            merge = row.merge
            asked = {"method": merge.method, "options": merge.options, "by_pattern": merge.options_by_pattern}
            members = {"names": list(row.members), "models": inputs, "tasks": list(tasks.values())}
            return {"together": shared | members | asked | {"own": options.classes != "any"}}
        if kind == "gram":
            shared["own"] = options.classes == "own"
        return {
            name: shared
            | {
                "name": name,
                "model": MergeInputs(
                    models=[model], bases=[], families=[family], alignment=inputs.alignment if family else None
                ),
                "tasks": tasks[name],
            }
            for name, model, family in zip(row.members, inputs.models, inputs.families, strict=True)
        }

    def merge(self, row: Row, inputs: MergeInputs, coefficients: ArtifactRef | None) -> dict[str, Any]:
        """Arguments of the merge of a row."""
        return {"name": row.name, "inputs": inputs, "coefficients": coefficients, "merge": row.merge}

    def ranges(self, call: dict[str, Any]) -> list[dict[str, Any]]:
        """Arguments of the ranges that a merge is shared out in; none for a small one, or one that is done already."""
        count = -(-size_of(call["inputs"].models[0].path) // self.plan.range_size)
        if count == 1 or at_hand(merge_models, **call):
            return []
        return [call | {"number": number, "count": count} for number in range(count)]

    def statistics(self, row: Row, inputs: MergeInputs) -> dict[str, Any]:
        """Arguments of the statistics of a row: of the method's options only those that they depend on."""
        from mergeline.merging.registry import get

        read = get(row.merge.method).statistics_options
        options = {name: value for name, value in row.merge.options.items() if name in read}
        patterns = {
            pattern: {name: value for name, value in own.items() if name in read}
            for pattern, own in row.merge.options_by_pattern.items()
        }
        grouping = {
            "granularity": row.merge.granularity,
            "options_by_pattern": {k: v for k, v in patterns.items() if v},
        }
        options |= {name: value for name, value in grouping.items() if value}
        return {"inputs": inputs, "method": row.merge.method, "options": options}

    def competition(self, row: Row, inputs: MergeInputs, coefficients: ArtifactRef) -> dict[str, Any]:
        """Arguments of the count of who won the parameters of a row."""
        counted = self.statistics(row, inputs)
        return {"inputs": inputs, "coefficients": coefficients, "options": counted["options"]}

    def exports(self, model: ArtifactRef) -> dict[str, dict[str, Any]]:
        """Arguments of the export of the result, by kind. What is installed counts: what was missing may be there."""
        if not self.plan.export:
            return {}
        from mergeline.export import PACKAGES

        shared = {"model": model, "architecture": self.architecture, "calibration": self.calibration}
        return {
            kind: {"kind": kind, "packages": {name: installed(name) for name in PACKAGES[kind]}, **shared}
            for kind in self.plan.export
        }

    def reset(self, model: ArtifactRef) -> dict[str, Any]:
        """Arguments of a normalisation reset on the data of all domains."""
        return {"model": model, "max_shard_size": self.plan.merge.max_shard_size} | self.calibration_inputs

    def calibrated(self, model: ArtifactRef, domain: Domain) -> dict[str, Any]:
        """Arguments of a measurement of normalisation statistics on the data of one domain."""
        return {"model": model} | self.calibration_inputs | {"calibration": domain.calibration}

    @property
    def calibrated_domains(self) -> list[Domain]:
        """Those on whose data normalisation statistics are measured."""
        return [domain for domain in self.domains if domain.calibration is not None]

    def evaluation(
        self,
        row: Row,
        checkpoints: dict[str, ArtifactRef],
        merged: dict[str, ArtifactRef],
        domains: list[Domain] | None = None,
        alignment: ArtifactRef | None = None,
    ) -> dict[str, Any]:
        """Arguments of the evaluation of a row, its merged model or the checkpoints that it names, by default on the
        data of the tasks. alignment: what aligned rows were aligned by."""
        models = [merged[row.name]] if row.kind == "merge" else [checkpoints[name] for name in row.members]
        return {
            "name": row.name,
            "label": row.label,
            "models": models,
            "reset": row.reset,
            "heads": self.heads(checkpoints, alignment if row.aligned else None),
        } | self.measuring(self.domains if domains is None else domains)

    def measuring(self, domains: list[Domain]) -> dict[str, Any]:
        """Arguments of every stage that measures a merged model on these domains."""
        named = [task.classes for task in self.plan.joint_tasks]
        return {
            "architecture": self.architecture.model_copy(update={"device": self.plan.evaluation.device}),
            "domains": domains,
            "classes": None if None in named else sorted({number for classes in named for number in classes or ()}),
            "calibration_batch": self.plan.calibration.batch_size if self.plan.calibration else None,
            "batch_size": self.plan.evaluation.batch_size,
        }

    @property
    def judges(self) -> dict[str, str]:
        """Task -> the version of the code that judges it, of those that a function of the user does."""
        return {name: asked.code for domain in self.domains for name, asked in domain.tasks.items() if asked.code}

    @property
    def datasets(self) -> dict[str, ArtifactRef]:
        """Every file of data that the run looks at, by name."""
        plan, slices = self.plan, [domain.examples for domain in self.domains]
        if plan.calibration:
            slices = [self.calibration, *slices]
        if self.control_data:
            slices.append(self.control_data)
        if plan.align and aligns(plan) and plan.align.balance_search:
            slices += [domain.examples for domain in self.domains_on(plan.align.balance_search.split)]
        if plan.landscape:
            slices += [domain.examples for domain in self.domains_on(plan.landscape.split)]
        if evidence_of(plan.merge):
            slices += [self._task_data(task, plan.merge.evidence.split).examples for task in self._inside]
        files = [piece.file for piece in slices]
        files += [piece.inputs.tokenizer for piece in slices if isinstance(piece.inputs, Texts)]
        prototypes = {f"{domain.name} prototypes": domain.prototypes for domain in self.domains if domain.prototypes}
        return {str(file.metadata["name"]): file for file in files} | prototypes

    @property
    def _inside(self) -> list[Task]:
        """The tasks that a model was trained for."""
        return [task for task in self.plan.tasks if task.checkpoint is not None]

    @property
    def _calibration_options(self) -> Calibration:
        if self.plan.calibration is None:
            raise InputError("calibration: is missing; this plan can only be merged")
        return self.plan.calibration

    def _task_data(self, task: Task, split: str) -> TaskData:
        dataset = self.plan.datasets[task.dataset]
        return TaskData(
            examples=take_slice(dataset, split, task.where),
            prototypes=take_prototypes(dataset) if task.kind == PROTOTYPES else None,
            classes=task.classes,
        )

    def _calibration(self, where: dict[str, str]) -> DataSlice:
        calibration = self._calibration_options
        dataset = self.plan.datasets[calibration.dataset]
        return take_slice(dataset, calibration.split, where, calibration.sample, calibration.draw)

    def _calibration_like(self, task: Task) -> DataSlice | None:
        """The calibration data that is like that of a task; None where the plan has none."""
        calibration = self.plan.calibration
        if calibration is None:
            return None
        return self._calibration(calibration.where | (task.where if task.dataset == calibration.dataset else {}))

    def alignments(self, options: Align) -> dict[str, Align]:
        """The options to align with, by their balance: one, or all that are to be tried."""
        balances = options.balance_search.balances if options.balance_search else [options.balance]
        fixed = options.model_copy(update={"balance_search": None})
        return {str(balance): fixed.model_copy(update={"balance": balance}) for balance in balances}

    def search_scores(self, search: BalanceSearch, rows: dict[str, RowScores]) -> dict[str, float]:
        """What a search for the balance goes by."""
        return {balance: row.by(search.metric).goodness for balance, row in rows.items()}

    def domains_on(self, split: str | None = None) -> list[Domain]:
        """The tasks by the slice of data that they look at, in the order of the plan; `split` in place of their own:
        that is for a search, to which tasks outside are of no use."""
        plan = self.plan
        slices: dict[str, list[Task]] = {}
        for task in plan.tasks if split is None else self._inside:
            slices.setdefault(repr((task.dataset, task.split, task.where)), []).append(task)
        firsts = [tasks[0] for tasks in slices.values()]
        shared = Counter(first.domain for first in firsts)
        domains = []
        for first, tasks in zip(firsts, slices.values(), strict=True):
            dataset = plan.datasets[first.dataset]
            unique = shared[first.domain] == 1
            name = first.domain if unique else f"{first.domain}-{first.dataset}-{first.split}"
            domains.append(
                Domain(
                    name=re.sub(r"[^\w.-]", "_", name),
                    examples=take_slice(dataset, split or first.split, first.where),
                    calibration=self._calibration_like(first),
                    prototypes=take_prototypes(dataset),
                    tasks={task.name: _question(task, dataset) for task in tasks},
                )
            )
        return domains


def _question(task: Task, dataset: Dataset) -> Question:
    generates = task.kind == SEQ2SEQ
    return Question(
        classes=task.classes,
        metric=task.metric,
        outside=task.checkpoint is None,
        kind=task.kind,
        head=task.head,
        target_column=dataset.target_column if generates else None,
        max_new_tokens=task.max_new_tokens if generates else None,
        code=code_version(task.kind.partition(":")[0]) if is_function(task.kind) else "",
    )
