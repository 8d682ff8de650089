"""Commands that refuse what they are given."""


def refusal(main, words, capsys):
    """The one line on stderr with which a command ends with exit code 2."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    return line
