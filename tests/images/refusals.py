"""An assertion for data that cannot be used."""

import pytest

from images.info import DataError


def refused(call, *names):
    """Assert that `call` raises a DataError of one line that holds all `names`; return the line."""
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    for name in names:
        assert str(name) in text
    return text
