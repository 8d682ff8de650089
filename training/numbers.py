"""Numbers of a command line, as types for argparse: out of their range they are refused in its words."""

import argparse
import math


def _number(kind, is_allowed, words):
    """A type for argparse: a number of which `is_allowed` is true."""

    def parse(text):
        value = kind(text)
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse's word for what is no number at all
    return parse


positive_int = _number(int, lambda value: value >= 1, "at least 1")
positive_float = _number(float, lambda value: 0 < value < math.inf, "a positive number")
non_negative_int = _number(int, lambda value: value >= 0, "at least 0")
non_negative_float = _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
share = _number(float, lambda value: 0 <= value < 1, "in [0, 1)")
positive_share = _number(float, lambda value: 0 < value <= 1, "in (0, 1]")
