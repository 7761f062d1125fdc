"""What a check is given may be anything: it says so in a sentence, and the model stays as it was."""

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat.doctor.fingerprint import changed, fingerprint


def small():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def x(n=6):
    return [torch.randn(n, 4) for _ in range(3)]


class Nested(nn.Module):
    """Gives a dict of lists of tensors."""

    def __init__(self):
        super().__init__()
        self.body = small()

    def forward(self, x):
        return {"loss": None, "all": [self.body(x), (x,)]}


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(4), 0

    def forward(self, x):
        self.calls += 1
        self.norm(x)
        raise RuntimeError("no luck")


class Restless(nn.Module):
    """Changes its own buffer and attribute at every call."""

    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.LayerNorm(4), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        return self.norm(x)


def twice():
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(norm, nn.Linear(4, 4), norm)


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (small(), x()),
        (small(), x(1)),
        (small(), [torch.randn(n, 4) for n in (6, 3, 1)]),
        (small(), [torch.full((6, 4), float("nan"))] * 3),
        (Nested(), x()),
        (Restless(), x()),
        (twice(), x()),
        (nn.Linear(4, 2), x()),
        (torch.compile(small(), backend="eager"), x()),
    ],
    ids=["plain", "of one", "of mixed size", "NaN", "nested", "restless", "shared", "no norm", "compiled"],
)
def test_any_model_and_batches_are_reported_on_and_left_as_they_were(model, batches):
    before = fingerprint(model)
    report = hs.check(model, batches, select="all")
    assert report.changed == ()
    assert changed(before, fingerprint(model)) == []
    assert all(result.why for result in report.results if result.state in ("not applicable", "not measured"))
    assert "3 batches" in report.head


def test_batches_of_nan_are_no_finding():
    report = hs.check(small(), [torch.full((6, 4), float("nan"))] * 3, select=["HS101", "HS102", "HS103"])
    assert report.codes == []


def test_what_a_model_raises_comes_out_with_a_note_and_the_model_stays_as_it_was():
    model, batches = Raising(), x()
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="no luck") as raised:
        hs.check(model, batches)
    assert "unchanged" in raised.value.__notes__[0]
    assert changed(before, fingerprint(model)) == []
    assert model.calls == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (small().to("meta"), "meta device"),
        (torch.jit.script(small()), "torch.jit.script"),
        (nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()), "run it once"),
        ("a model", "Module"),
    ],
)
def test_a_model_without_numbers_or_code_is_refused_in_a_sentence(model, said):
    with pytest.raises((ValueError, TypeError), match=said):
        hs.check(model, x())


def test_an_empty_batch_is_not_measured_and_says_so():
    try:
        report = hs.check(small(), [torch.randn(0, 4), torch.randn(4, 4)], select=["HS101", "HS102", "HS103"])
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}")
    assert {result.why for result in report.results} == {"a batch is empty"}


def test_one_tensor_in_place_of_a_list_of_batches_is_refused():
    with pytest.raises(TypeError, match="pass a list of batches"):
        hs.check(small(), torch.randn(6, 4))
