"""Outputs of a model's own last layer find their labels."""

import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation.heads import answers_all, label_logits
from mergeline.evaluation.metrics import accuracy, predict_logits

OUTPUTS = torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0]])


def test_an_output_per_class_of_the_task_in_its_order():
    logits = label_logits(OUTPUTS, [4, 1], 6)
    assert logits.argmax(dim=1).tolist() == [4, 1, 4]
    assert accuracy(logits, torch.tensor([4, 1, 1]), [4, 1]).value == pytest.approx(2 / 3)


def test_an_output_per_label_is_left_as_it_is():
    assert torch.equal(label_logits(OUTPUTS, [1, 0], 2), OUTPUTS)
    assert torch.equal(label_logits(OUTPUTS, None, 2), OUTPUTS)


@pytest.mark.parametrize("classes", [None, [0, 1, 2], [0, 9]])
def test_another_number_of_outputs_is_refused(classes):
    with pytest.raises(InputError, match="the last layer has 2 outputs, but the dataset has 6 labels"):
        label_logits(OUTPUTS, classes, 6)


def test_a_head_stands_in_for_the_modules_own_while_it_is_asked():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)).eval()
    inputs, before = torch.randn(5, 2), module[1].weight.clone()
    head = {"1.weight": torch.randn(2, 3), "1.bias": torch.randn(2)}  # of a task with fewer classes
    expected = module[0](inputs) @ head["1.weight"].T + head["1.bias"]
    assert torch.allclose(predict_logits(module, inputs, 2, head=head), expected, atol=1e-6)
    assert torch.equal(module[1].weight, before)


def test_outputs_that_are_no_rows_of_numbers_are_refused():
    with pytest.raises(InputError, match=r"the model gives outputs of shape \[4, 3, 3\]; expected a row"):
        predict_logits(torch.nn.Identity().eval(), torch.zeros(4, 3, 3))


def test_which_classes_have_an_output():
    logits = label_logits(torch.ones(2, 2), [0, 2], labels=3)
    assert answers_all(logits, [0, 2]) and answers_all(logits, [0, 9])
    assert not answers_all(logits, [0, 1]) and not answers_all(logits, None)
    assert answers_all(torch.ones(2, 3), None)
