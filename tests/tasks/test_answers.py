"""Models answer the tasks of a slice of texts, each by its kind; what is no answer names the model and its tasks."""

import datasets
import pytest
import torch

from mergeline.errors import InputError
from mergeline.models.pretrained import causal_lm, seq2seq
from mergeline.plan import Dataset
from tests.texts import write_gpt2, write_t5, write_texts, write_tokenizer

HERE = __name__


def lengths(module, rows, batch_size):
    return [len(text) for text in rows["text"]]


class Classifier(torch.nn.Module):
    """Texts to two classes by what words they have; its outputs are as those of transformers."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(12, 4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, inputs):
        ids, mask = inputs.unbind(dim=1)
        return self.head((self.words(ids) * mask[:, :, None]).sum(dim=1))


@pytest.fixture
def asked(state, tmp_path):
    """A function that measures a module by questions, on texts in two classes with a wanted text each."""
    from tasks.domains import Domain, Question
    from tasks.evaluation import measure
    from tasks.inputs import take_slice

    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    texts = ["game of chess", "mail server", "shared library ships", "ships of mail"]
    write_texts(tmp_path / "data" / "test.parquet", texts, [0, 1, 1, 0], ["a", "b"], target=["chess", "mail", "x", "y"])
    dataset = Dataset(path=tmp_path / "data", text_column="text", tokenizer=tokenizer)
    examples = take_slice(dataset, "test", {})

    def run(modules, heads=None, classes=(), **questions):
        tasks = {name: Question(**question) for name, question in questions.items()}
        domain = Domain(name="texts", examples=examples, calibration=None, prototypes=None, tasks=tasks)
        return measure(modules, [domain], list(classes), None, 2, name="it", label="it", heads=heads)

    return run


def test_texts_are_classified_by_the_models_own_last_layer(asked):
    torch.manual_seed(0)
    module = Classifier().eval()
    row = asked([module], classes=[0, 1], letters={"kind": "head"}, two={"kind": "head", "classes": [0, 1]})
    assert row.tasks["letters"] == row.tasks["two"] == row.joint
    own = {"head.weight": -module.head.weight.detach(), "head.bias": -module.head.bias.detach()}
    turned = asked([module], {"letters": own}, letters={"kind": "head", "head": "head"})
    assert turned.tasks["letters"].value == pytest.approx(1 - row.tasks["letters"].value)
    assert turned.joint is None
    with pytest.raises(InputError, match=r"it, measured on one: classes .*: expected different numbers from 0 to 1"):
        asked([module], one={"kind": "head", "classes": [0, 9]})


def test_outputs_that_stand_for_other_classes_in_every_task_have_no_joint_accuracy(state, tmp_path):
    from tasks.domains import Domain, Question
    from tasks.evaluation import measure
    from tasks.inputs import take_slice

    texts, tokenizer = ["game of chess", "mail server", "ships", "library"], write_tokenizer(tmp_path / "tokenizer")
    write_texts(tmp_path / "data" / "test.parquet", texts, [0, 1, 2, 3], list("abcd"))
    dataset = Dataset(path=tmp_path / "data", text_column="text", tokenizer=tokenizer)
    tasks = {name: Question(kind="head", classes=own) for name, own in (("one", [0, 1]), ("two", [2, 3]))}
    examples = take_slice(dataset, "test", {})
    domain = Domain(name="texts", examples=examples, calibration=None, prototypes=None, tasks=tasks)
    torch.manual_seed(0)
    row = measure([Classifier().eval()], [domain], [0, 1, 2, 3], None, 2, name="it", label="it")
    assert row.joint is None and set(row.tasks) == {"one", "two"}


def test_a_task_of_every_other_kind(asked, tmp_path):
    torch.manual_seed(0)
    reader, writer = (
        causal_lm(str(write_gpt2(tmp_path / "gpt2"))).eval(),
        seq2seq(str(write_t5(tmp_path / "t5"))).eval(),
    )
    row = asked(
        [reader],
        read={"kind": "causal_lm", "metric": "perplexity"},
        judged={"kind": f"{HERE}:lengths", "metric": "score", "outside": True},
    )
    assert 1 < row.tasks["read"].value < 100 and row.joint is None
    assert (row.outside["judged"].value, row.outside["judged"].measure) == (14.25, "score")
    written = asked([writer], write={"kind": "seq2seq", "metric": "exact_match", "target_column": "target"})
    assert (written.mean.value, written.mean.count) == (0.0, 4)
    with pytest.raises(InputError, match="it, measured on write: 'wanted' is not a column of"):
        asked([writer], write={"kind": "seq2seq", "metric": "exact_match", "target_column": "wanted"})
    with torch.no_grad():
        next(reader.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="it, measured on read: the loss of the model is not finite for 4 of 4 texts"):
        asked([reader], read={"kind": "causal_lm", "metric": "perplexity"})


def test_texts_are_read_without_labels(state, tmp_path):
    from tasks.inputs import take_slice

    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"text": ["chess", "mail"]}).to_parquet(tmp_path / "data" / "test.parquet")
    dataset = Dataset(path=tmp_path / "data", text_column="text", tokenizer=write_tokenizer(tmp_path / "tokenizer"))
    assert take_slice(dataset, "test", {}).tokens().shape == (2, 2, 3)
    pictures = take_slice(Dataset(path=tmp_path / "data"), "test", {})
    assert pictures.rows().column_names == ["text"]
    with pytest.raises(InputError, match="is no data set of texts"):
        pictures.tokens()


def test_what_weighs_models_sees_the_logits_of_their_own_heads(state, tmp_path):
    from tasks.evidence import TaskData
    from tasks.inputs import take_slice

    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    write_texts(tmp_path / "data" / "test.parquet", ["chess", "mail", "ships"], [0, 1, 2], ["a", "b", "c"])
    examples = take_slice(Dataset(path=tmp_path / "data", text_column="text", tokenizer=tokenizer), "test", {})
    outputs = torch.tensor([[1.0, 2.0]], requires_grad=True)
    data = TaskData(examples=examples, prototypes=None, classes=[2, 0])
    logits = data.logits()(outputs)
    assert logits.tolist() == [[1.0, 2.0]], "in the order of the task's classes"
    (gradient,) = torch.autograd.grad(logits[0, 1], outputs)
    assert gradient.tolist() == [[0.0, 1.0]]
    ((_, places),) = data.labelled(None, 8)
    assert places.tolist() == [1, 0]
    everything = TaskData(examples=examples, prototypes=None, classes=None).logits()
    assert everything(torch.eye(3)).tolist() == torch.eye(3).tolist()
