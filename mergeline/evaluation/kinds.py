"""The kinds of tasks: what a model is asked, and which metrics its answers can be measured by."""

from collections.abc import Iterable, Mapping, Sequence

from mergeline.evaluation.score import LOWER_IS_BETTER, Measure, MetricName

PROTOTYPES, HEAD, CAUSAL_LM, SEQ2SEQ = "prototypes", "head", "causal_lm", "seq2seq"

CLASSIFICATION: tuple[MetricName, ...] = ("accuracy", "balanced_accuracy", "f1")

KINDS: Mapping[str, tuple[MetricName, ...]] = {
    PROTOTYPES: CLASSIFICATION,
    HEAD: CLASSIFICATION,
    CAUSAL_LM: ("perplexity",),
    SEQ2SEQ: ("exact_match",),
}
"""Kind -> the metrics that fit it, the default first. A function of the user, module:function, is a kind, too."""

OF_FUNCTIONS: tuple[MetricName, ...] = ("score", "loss", "accuracy", "exact_match")

MEASURES: Mapping[MetricName, Measure] = {
    "accuracy": "share",
    "balanced_accuracy": "share",
    "f1": "share",
    "exact_match": "share",
    "perplexity": "perplexity",
    "score": "score",
    "loss": "loss",
}

NAMES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "exact_match": "exact match",
    "mean": "score",
}
"""The metrics that are shares, in words; "mean" stands for that of several of them."""

WORDS: Mapping[Measure, str] = {
    "share": "score in %",
    "perplexity": "perplexity (lower is better)",
    "score": "score",
    "loss": "loss (lower is better)",
}
"""What the numbers of a table are, in words."""


def words_for(metric: str, measure: Measure) -> str:
    """What numbers are, in words. metric: which shares (see NAMES)."""
    return f"{NAMES[metric]} in %" if measure == "share" else WORDS[measure]


def shown(goodness: float, measure: Measure, digits: int) -> str:
    """What was ranked by (`Score.goodness`), as the number that it is; shares in percent."""
    if measure == "share":
        return f"{100 * goodness:.{digits}f} %"
    return f"{-goodness if measure in LOWER_IS_BETTER else goodness:.4f}"


LabelSpace = tuple[str, str]


def metrics_of(kind: str) -> tuple[MetricName, ...]:
    """The metrics that fit a kind, the default first; none for a word that is no kind."""
    return OF_FUNCTIONS if is_function(kind) else KINDS.get(kind, ())


def is_function(kind: str) -> bool:
    """Whether a kind is a function of the user, written module:function."""
    return ":" in kind


def is_classification(kind: str) -> bool:
    """Whether a task of this kind chooses among classes."""
    return kind in (PROTOTYPES, HEAD)


def has_loss(kind: str) -> bool:
    """Whether the answers have a loss in nats: the cross-entropy of classes or tokens."""
    return is_classification(kind) or kind == CAUSAL_LM


def is_answered_by_ensembles(kind: str) -> bool:
    """Whether several models can answer together: their probabilities have a mean, texts and functions have none."""
    return kind in (PROTOTYPES, HEAD, CAUSAL_LM)


def columns_of(kind: str, *, texts: bool) -> tuple[str, ...]:
    """The fields of a dataset that name the columns which a task of this kind reads."""
    if is_function(kind):
        return ()
    if kind == CAUSAL_LM:
        return ("text_column",)
    if kind == SEQ2SEQ:
        return ("text_column", "target_column")
    return ("text_column" if texts else "image_column", "label_column")


def label_space(kind: str, head: str | None, dataset: str, prototypes: str | None) -> LabelSpace | None:
    """What the classes of a task are numbered in; None where they are those of the task alone, or it has none."""
    if kind == PROTOTYPES:
        return kind, str(prototypes)
    return (kind, dataset) if kind == HEAD and head is None else None


def share_labels(spaces: Sequence[LabelSpace | None]) -> bool:
    """Whether classifications have one label space, so that all their classes can be told apart at once."""
    return bool(spaces) and None not in spaces and len(set(spaces)) == 1


def measures_of(metrics: Iterable[str]) -> list[Measure]:
    """The different measures of some metrics, in order."""
    return list(dict.fromkeys(measure for metric in metrics for name, measure in MEASURES.items() if name == metric))
