import pytest
import torch
import torch.nn.functional as F

from robustrun.methods.attacks import cross_entropy, dlr, dlr_targeted, get_loss, margin

LOGITS = torch.tensor([[1.0, 4.0, 3.0, -2.0, 0.0], [5.0, 5.5, 1.0, 2.0, 0.0]])
LABELS = torch.tensor([1, 0])


def test_values_by_hand():
    torch.testing.assert_close(margin(LOGITS, LABELS), torch.tensor([-1.0, 0.5]))
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-1.0 / 3.0, 0.5 / 3.5]))
    targets = torch.tensor([2, 3])
    expected = torch.tensor([-1.0 / (4 - 0.5), -3.0 / (5.5 - 1.5)])
    torch.testing.assert_close(dlr_targeted(LOGITS, LABELS, targets), expected)
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, reduction="none"))


@pytest.mark.parametrize("loss", [margin, dlr])
def test_sign_says_whether_it_is_misclassified(loss):
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 6), torch.randint(6, (500,))
    assert torch.equal(loss(logits, labels) > 0, logits.argmax(1) != labels)


def test_dlr_is_invariant_to_shift_and_scale():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 6, dtype=torch.float64), torch.randint(6, (50,))
    torch.testing.assert_close(dlr(100 * logits + 7, labels), dlr(logits, labels))
    other = (labels + 1) % 6
    torch.testing.assert_close(dlr_targeted(100 * logits + 7, labels, other), dlr_targeted(logits, labels, other))


def test_two_classes_and_too_few():
    assert dlr(torch.tensor([[2.0, -1.0]]), torch.tensor([0])).item() == pytest.approx(-1)
    with pytest.raises(ValueError, match="four classes"):
        dlr_targeted(torch.randn(1, 3), torch.tensor([0]), torch.tensor([1]))


def test_names():
    assert get_loss("dlr") is dlr
    assert get_loss(margin) is margin
    with pytest.raises(ValueError, match="unknown attack loss"):
        get_loss("hinge")
