"""The model card: README.md of the published folder, as the Hugging Face hub and people read it.

Equal results give equal cards: nothing of time, machine or run is in it, nor the folder that it lies in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from mergeline.checkpoints.licence import UNKNOWN
from mergeline.checkpoints.transfer import shown
from mergeline.comparison import metric_of_mean
from mergeline.evaluation.kinds import CAUSAL_LM, SEQ2SEQ, is_classification
from mergeline.plan import WITHOUT_EFFECT, Plan
from mergeline.plan_data import Task
from mergeline.report.result import Comparison
from mergeline.report.table import markdown_table, own_table, words_of

MEAN = "mean of tasks"
MARK = "<!-- Written by mergeline; the next run into this folder writes it again. -->"


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside plan and scores.

    parents: of each checkpoint by name digest and licence. files: the published files of the model. library: what
    loads them: "transformers", "peft", "timm", or "pytorch". exports: exports.json. code, packages: what computed.
    """

    digests: Mapping[str, str]
    licences: Mapping[str, str]
    files: Sequence[str]
    library: str
    code: str
    packages: Mapping[str, str]
    exports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def model_card(plan: Plan, comparison: Comparison, facts: CardFacts) -> str:
    """Markdown with YAML front matter."""
    sections = [
        f"---\n{yaml.safe_dump(front_matter(plan, comparison, facts), sort_keys=False, allow_unicode=True)}---",
        MARK,
        f"# {plan.name}",
        _summary(plan),
        f"## Use\n\n{_use(plan, facts)}",
        f"## Parents\n\n{_parents(plan, facts)}",
        f"## Method\n\n{_method(plan)}",
        f"## Evaluation\n\n{_evaluation(comparison)}",
        f"## Licence\n\n{_licence(facts)}",
        f"## Reproduce\n\n{_reproduce(facts)}",
        f"## Plan\n\n```yaml\n{plan_text(plan)}```",
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(plan: Plan, comparison: Comparison, facts: CardFacts) -> dict[str, Any]:
    """The fields that the Hugging Face hub reads."""
    parents = dict.fromkeys(name for spec in plan.checkpoints if (name := _repository(spec.uri)))
    fields: dict[str, Any] = {"base_model": list(parents), "base_model_relation": "merge"} if parents else {}
    shared = common_licence(facts.licences)
    if shared != UNKNOWN and not shared.startswith("other"):
        fields["license"] = shared
    fields |= {"library_name": facts.library, "tags": ["merge", "mergeline", plan.merge.method]}
    if comparison.rows:
        result = comparison.result
        scores = result.tasks | {MEAN if name == "mean" else name: score for name, score in result.summary.items()}
        asked = {task.name: task for task in plan.tasks}
        fields["model-index"] = [
            {
                "name": plan.name,
                "results": [
                    {
                        "task": {"type": _task_type(plan, asked.get(name, plan.tasks[0]))},
                        "dataset": {"name": name, "type": name.replace(" ", "-")},
                        "metrics": [{"type": word, "name": f"{word}, {score.count} {counted}", "value": value}],
                    }
                    for name, score in scores.items()
                    for value in [round(score.value, 6)]
                    for word in [_metric_type(plan, name, asked.get(name))]
                    for counted in ["tokens" if score.measure == "perplexity" else "examples"]
                ],
            }
        ]
    return fields


def _metric_type(plan: Plan, score: str, task: Task | None) -> str:
    """What the hub calls the metric of a score: of a task, of their mean, or of joint accuracy."""
    return task.metric if task else metric_of_mean(plan) if score == MEAN else "accuracy"


def _task_type(plan: Plan, task: Task) -> str:
    """What the hub calls a task."""
    if is_classification(task.kind):
        return "image-classification" if plan.datasets[task.dataset].text_column is None else "text-classification"
    return {CAUSAL_LM: "text-generation", SEQ2SEQ: "text2text-generation"}.get(task.kind, "other")


def common_licence(licences: Mapping[str, str]) -> str:
    """The licence that all parents have, or "unknown": who merges parents of several licences decides what holds."""
    found = set(licences.values())
    return found.pop() if len(found) == 1 else UNKNOWN


def plan_text(plan: Plan) -> str:
    """The plan as YAML: what differs from the defaults, without what no byte of the result depends on."""
    fields = plan.model_dump(mode="json", exclude_defaults=True, exclude=set(WITHOUT_EFFECT))
    fields["merge"] = {"method": plan.merge.method} | fields.get("merge", {})
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _repository(uri: str) -> str | None:
    found = re.match(r"hf://([^/@]+/[^/@]+)", uri)
    return found[1] if found else None


def _summary(plan: Plan) -> str:
    models = ", ".join(model.name for model in plan.task_models)
    bases = f", fine-tuned from {' and '.join(base.name for base in plan.bases)}" if plan.bases else ""
    return f"{len(plan.task_models)} models ({models}{bases}), merged into one by {plan.merge.method}."


def _use(plan: Plan, facts: CardFacts) -> str:
    match facts.library:
        case "transformers":
            lines = [
                "from transformers import AutoModel  # or the class that config.json names under architectures",
                "",
                'model = AutoModel.from_pretrained("this/folder")',
            ]
        case "peft":
            lines = [
                "from peft import PeftModel",
                "",
                'model = PeftModel.from_pretrained(base_model, "this/folder")',
            ]
        case "timm":
            lines = ["import timm", "", 'model = timm.create_model("local-dir:this/folder", pretrained=True)']
        case _ if plan.architecture and "model.safetensors" in facts.files:
            module, _, function = plan.architecture.factory.partition(":")
            arguments = ", ".join(f"{name}={value!r}" for name, value in plan.architecture.kwargs.items())
            lines = [
                "from safetensors.torch import load_file",
                f"from {module} import {function}",
                "",
                f"model = {function}({arguments})  # as in config.json",
                'model.load_state_dict(load_file("model.safetensors"))',
                "model.eval()",
            ]
        case _:
            lines = ["import mergeline", "", f'tensors = dict(mergeline.open_checkpoint("{_entry(facts.files)}"))']
    text = "```python\n" + "\n".join(lines) + "\n```"
    if plan.tasks and plan.calibration:
        text += (
            "\n\n`normalization/` has the statistics of the normalisation layers for each domain; load the one of your "
            "inputs over the model with `strict=False`, as the evaluation did."
        )
    if plan.heads:
        text += (
            "\n\n`heads/` has for each task the head of its own model, in the unit order of this one; load it over the "
            "model in the same way. The model itself carries the head of its first parent."
        )
    for kind, made in facts.exports.items():
        if "file" in made:
            shape = ", ".join(str(size) for size in made["input"])
            text += f"\n\n`exports/{made['file']}` ({kind}) takes [{shape}]; checked {made['checked']}."
        else:
            text += f"\n\nNot exported: {made['problem']}."
    return text


def _entry(files: Sequence[str]) -> str:
    weights = [name for name in files if name.endswith((".safetensors", ".safetensors.index.json"))]
    return next((name for name in weights if name.endswith(".json")), weights[0] if weights else "model.safetensors")


def _parents(plan: Plan, facts: CardFacts) -> str:
    lines = ["| checkpoint | role | from | licence | sha256 |", "| --- | --- | --- | --- | --- |"]
    bases = {base.name for base in plan.bases}
    for spec in plan.checkpoints:
        role = "base" if spec.name in bases else f"fine-tuned from {spec.base}" if spec.base else "model"
        licence, digest = facts.licences[spec.name], facts.digests[spec.name]
        lines.append(f"| {spec.name} | {role} | `{shown(spec.uri)}` | {licence} | `{digest}` |")
    return "\n".join(lines)


def _method(plan: Plan) -> str:
    options = {**plan.merge.options, **plan.merge.grouping}
    text = f"`{plan.merge.method}`" + "".join(f", {name} {value}" for name, value in options.items())
    if plan.align is not None and len(plan.families) > 1:
        how = "zipped" if plan.align.method == "zip" else "brought"
        text += (
            f". Before it the units of {', '.join(plan.families[1:])} were {how} into the order of {plan.families[0]}, "
            f"matched in {plan.align.space} space"
        )
    return text + "."


def _evaluation(comparison: Comparison) -> str:
    if not comparison.rows:
        return "Not evaluated: the plan has no tasks."
    words = "Scores in percent" if comparison.result.mean.measure == "share" else words_of(comparison).capitalize()
    text = f"{words} ± their standard error over the test examples.\n\n{markdown_table(comparison)}"
    own = own_table(comparison)
    return f"{text}\n\nEach task beside the model that was trained for it:\n\n{own}" if own else text


def _licence(facts: CardFacts) -> str:
    shared = common_licence(facts.licences)
    if shared != UNKNOWN:
        return f"All parents are under `{shared}`, by their own files; what holds for a merge of them is yours to say."
    named = sorted(set(facts.licences.values()) - {UNKNOWN})
    if not named:
        return "Unknown: no parent names its licence. Ask before you pass this model on."
    silent = [name for name, licence in facts.licences.items() if licence == UNKNOWN]
    text = f"The parents name {', '.join(f'`{name}`' for name in named)}"
    text += f"; {', '.join(silent)} name{'s' if len(silent) == 1 else ''} none" if silent else ""
    return text + ". Which licence a merge of them may have is for you to find out."


def _reproduce(facts: CardFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
    return (
        "In the project that made it, `python -m flows.rebuild --of FOLDER` (this one) finds the run and its commit, "
        "and `python -m flows.rebuild --run RUN` makes the model again and compares every byte. Or save the plan below "
        "as `plan.yaml` and run `python -m flows.merge_and_evaluate --params plan.yaml`.\n\n"
        f"Sources `{facts.code[:16]}`; {versions}. `lineage.json` has every input with digest and size."
    )
