"""Comparison of batches, and an assertion for data that cannot be used."""

import pytest
import torch

from images.info import DataError


def same(ours, theirs):
    """Return True if two lists of batches (images, labels) are equal."""
    return len(ours) == len(theirs) and all(
        torch.equal(one, other) for pair in zip(ours, theirs, strict=True) for one, other in zip(*pair, strict=True)
    )


def refused(call, *names):
    """Assert that `call` raises a DataError of one line that holds all `names`; return the line."""
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    for name in names:
        assert str(name) in text
    return text
