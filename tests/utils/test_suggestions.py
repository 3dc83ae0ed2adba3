"""Suggestions for misspelt names."""

from skpatchcore._utils import did_you_mean


def test_close_names_are_suggested():
    names = ["layer1", "layer2", "head"]
    assert did_you_mean("heed", names) == " Did you mean 'head'?"
    assert did_you_mean("layer", names) == " Did you mean 'layer2' or 'layer1'?"


def test_nothing_is_suggested_where_nothing_is_close():
    assert did_you_mean("stem", ["layer1", "head"], cutoff=0.8) == ""
